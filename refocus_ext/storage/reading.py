"""One reading of a file of weights, memory-mapped: whatever wraps a network's tensors is taken off, and what is left out is said.

A file is recognized by its bytes, not by its name: torch's zip, torch's older pickle, or safetensors. `torch.load` is always
called with `weights_only=True`, so that no code is unpickled.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from refocus_ext.counting import counted
from refocus_ext.errors import UsageError

# Segments that wrappers put into names, at any depth: torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# First segments of networks that only trained the one that is looked for.
OF_TRAINING = ("loss", "lpips", "perceptual_loss", "discriminator", "disc", "critic")
ONE_SCALE = "quantize.quant_resi."  # what a VQVAE of one scale lacks of VAR's
DEPTH = 6  # of nested dictionaries that are searched
LFS = b"version https://git-lfs"


class Kind(NamedTuple):
    """A network that a file may hold.

    Attributes:
        name: for messages.
        landmarks: tensors that together only this network has; one that ends in "." is the start of a name.
        patterns: names of its files in a folder, the most wanted first.
    """

    name: str
    landmarks: tuple[str, ...]
    patterns: tuple[str, ...]


VAR = Kind(
    "VAR",
    ("class_emb.weight", "lvl_embed.weight", "word_embed.weight"),
    ("var_d*.pth", "var_*.safetensors", "ar-ckpt*best*.pth", "ar-ckpt*.pth", "*.safetensors"),
)
VQVAE = Kind(
    "VQVAE",
    ("quantize.embedding.weight", ONE_SCALE, "encoder.conv_in.weight"),
    ("vae*.pth", "vae*.safetensors", "ar-ckpt*best*.pth", "ar-ckpt*.pth", "*.safetensors"),
)
KINDS = (VAR, VQVAE)


@dataclass(frozen=True)
class Reading:
    """A network's state dict under upstream's names, in fp32, memory-mapped where the file allows.

    `notes` are clauses on what was taken off or left out. A `plain` file is a bare state dict that `torch.load` reads.
    """

    path: Path
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    plain: bool = True


def read_network(path: Path, kind: Kind) -> Reading:
    """The weights of a network in a file, or in a folder that holds one such file.

    Accepted are plain state dicts, safetensors, upstream's training checkpoints, this project's own, and state dicts that are
    wrapped in dictionaries or whose names have prefixes. Averaged weights (EMA) are preferred to those they average.

    Raises:
        UsageError: the file is missing, damaged, or holds no such network, or several.
    """
    file = find_network(path, kind)
    content = open_weights(file)
    found = list(_networks(content, kind))
    if not found:
        raise UsageError(_nothing(file, content, kind))
    place = _chosen(file, [place for place, _ in found], kind)
    tensors = dict(found)[place]
    state, foreign = _own(file, tensors, kind)
    notes = [*_notes(place, tensors, state, foreign, content), *_dtype_notes(state)]
    if file != path:
        notes.insert(0, f"read from {file.name}")
    plain = not place and content.keys() == state.keys() and not is_safetensors(file)
    return Reading(file, {name: _full(tensor) for name, tensor in state.items()}, tuple(notes), plain)


# ------------------------------------------------------------------------------------------------ the file


def find_network(path: Path, kind: Kind) -> Path:
    """The file: `path` itself, or the one in the folder `path` whose name is that of such weights.

    Raises:
        UsageError: there is none, or several of the same form.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} is not a file; give a file with the weights of a {kind.name}.")
    for pattern in kind.patterns:
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            refuse_folder(found[0])
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise UsageError(f"{path} holds several files of {kind.name} weights ({names}); give the file itself.")
    raise UsageError(
        f"{path} is a folder, not a file of weights, and holds no {kind.name} weights ({', '.join(kind.patterns)}); give the "
        "file itself."
    )


def refuse_folder(path: Path) -> None:
    """Raises UsageError if the path of a weights file is a folder."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file of weights; remove it and put the file in its place.")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, and the header."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size


def open_weights(path: Path) -> dict[str, Any]:
    """The dictionary in a file, on the CPU and memory-mapped: safetensors, or what `torch.save` wrote.

    Raises:
        UsageError: it is something else or damaged, or holds objects that only unsafe unpickling would read.
    """
    try:
        content = load_file(path) if is_safetensors(path) else _load_torch(path)
    except Exception as error:  # a damaged or foreign file can raise almost any exception
        raise UsageError(f"{path} {_why_unreadable(path, error)}.") from None
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is not a weights file that torch can load safely but a pickled {type(content).__name__}; give one "
            "of a state dict."
        )
    return content


def _load_torch(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options, in many checkpoints; plain values
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _why_unreadable(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(LFS):
        return "is a pointer of Git LFS, not the weights themselves; fetch them with `git lfs pull`"
    if head[:1] == b"<":
        return "is a web page, not a file of weights; download the file itself"
    if not head:
        return "is empty, no weights file that torch can load; copy it again"
    if "Weights only load failed" in str(error) and (unsafe := _unsafe_names(path)):
        return (
            f"is not a weights file that torch can load safely: it holds Python objects ({unsafe}); save its state dict "
            "alone, and give that file"
        )
    return "is not a weights file that torch can load safely, or is damaged; copy it again"


def _unsafe_names(path: Path) -> str:
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3])
    except Exception:  # not a checkpoint after all
        return ""


# ------------------------------------------------------------------------------------------------ the network in it


def _networks(content: Mapping[Any, Any], kind: Kind, place: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """(place, tensors by name) of each dictionary that has the landmarks; the place is a tuple of keys."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors and _prefixes(tensors, kind):
        yield place, tensors
        return
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and len(place) < DEPTH:
            yield from _networks(value, kind, (*place, key))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(tensors: Mapping[str, Tensor], kind: Kind) -> list[str]:
    """The prefixes ("", "module.", ...) under which all landmarks are found."""
    names = {_unwrapped(name) for name in tensors}
    first = kind.landmarks[0]
    candidates = sorted({name[: -len(first)] for name in names if name == first or name.endswith("." + first)})
    return [prefix for prefix in candidates if all(_has(names, prefix + mark) for mark in kind.landmarks)]


def _has(names: set[str], landmark: str) -> bool:
    return any(name.startswith(landmark) for name in names) if landmark.endswith(".") else landmark in names


def _is_average(place: tuple[str, ...] | str) -> bool:
    words = place.split(".") if isinstance(place, str) else place
    return any("ema" in word.lower().split("_") or word.lower() in ("ema", "averaged") for word in words)


def _chosen(path: Path, places: list[Any], kind: Kind) -> Any:
    """The only one; else the only averaged one; a teacher's weights are not a student's."""
    students = [place for place in places if "teacher" not in str(place)] or places
    averages = [place for place in students if _is_average(place)]
    chosen = averages if len(students) > 1 and averages else students
    if len(chosen) > 1:
        shown = " and ".join(repr(place if isinstance(place, str) else ".".join(place)) for place in chosen[:3])
        raise UsageError(
            f"{path} holds several {kind.name}s ({shown}); save the one that you mean, and give that file."
        )
    return chosen[0]


def _own(path: Path, tensors: Mapping[str, Tensor], kind: Kind) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors under upstream's names, and the names of those left out as another network's."""
    prefix = _chosen(path, _prefixes(tensors, kind), kind)
    others = [theirs for other in KINDS if other is not kind for theirs in _prefixes(tensors, other)]
    state: dict[str, Tensor] = {}
    foreign = []
    for original, tensor in tensors.items():
        name = _unwrapped(original)
        rest = name.removeprefix(prefix)
        # where both networks have the prefix "", their names would have to be told apart: a strict load does that
        beside = any(theirs != prefix and len(theirs) > len(prefix) and name.startswith(theirs) for theirs in others)
        if not name.startswith(prefix) or beside or rest.split(".")[0] in OF_TRAINING:
            foreign.append(original)
        elif rest in state:
            raise UsageError(f"{path} holds the tensor {rest} twice, once as {original}; save a state dict alone.")
        else:
            state[rest] = tensor
    return state, foreign


def _notes(
    place: tuple[str, ...], tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], foreign: list[str], content: Any
) -> Iterator[str]:
    if place:
        yield f"read from its entry {'.'.join(place)}"
    changed = next((name for name in tensors if name not in state and name not in foreign), None)
    if changed:
        own = next(name for name in state if _unwrapped(changed).endswith(name))
        yield f"names such as {changed} read as {own}"
    if foreign:
        yield f"{counted(len(foreign), 'tensor')} of other networks ignored (the first is {foreign[0]})"
    used = {place[0]} if place else set(tensors)
    rest = [str(key) for key in content if key not in used]
    if rest:
        yield f"ignored: {', '.join(rest[:6])}{' and more' if len(rest) > 6 else ''}"


def _dtype_notes(state: Mapping[str, Tensor]) -> Iterator[str]:
    floats = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} - {torch.float32}
    if floats:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floats))
        yield f"stored in {names}, loaded as fp32"


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


# ------------------------------------------------------------------------------------------------ what else is in it


def _nothing(path: Path, content: Mapping[Any, Any], kind: Kind) -> str:
    """The sentence for a file without such a network: what it holds instead."""
    others = [other.name for other in KINDS if other is not kind and list(_networks(content, other))]
    if isinstance(content.get("trainer"), dict):
        part = {"VAR": "var_wo_ddp", "VQVAE": "vae_local"}[kind.name]
        return f"{path} is a training checkpoint without a {kind.name} ({part}){_but(others)}; give another file."
    if others:
        return f"{path} holds no {kind.name}{_but(others)}; give another file."
    names = list(_tensor_names(content))
    if not names:
        inside = ", ".join(json.dumps(str(key)) for key in list(content)[:4]) or "nothing"
        return f"{path} holds no {kind.name} and no tensors at all (its entries are {inside}); give another file."
    lacks = _lacking(names, kind)
    if lacks and lacks != [ONE_SCALE]:
        return (
            f"{path} holds {counted(len(names), 'tensor')} of a {kind.name}, but lacks {' and '.join(lacks)}; give a file with the "
            "whole state dict."
        )
    why = f": a VQVAE of one scale, without VAR's {ONE_SCALE.rstrip('.')}" if lacks else ""
    return (
        f"{path} holds no {kind.name} but {counted(len(names), 'tensor')} of another network{why} (the first is '{names[0]}'); "
        f"give a file of VAR's {'own VQVAE' if kind is VQVAE else 'transformer'}."
    )


def _lacking(names: Iterable[str], kind: Kind) -> list[str]:
    """The landmarks that are missing where a prefix has most of them; empty where it has few."""
    plain = {_unwrapped(name) for name in names}
    ends = [re.compile(rf"(.*\.)?{re.escape(mark)}{'.*' * mark.endswith('.')}") for mark in kind.landmarks]
    prefixes = {match[1] or "" for name in plain for end in ends if (match := end.fullmatch(name))}
    missing = ([mark for mark in kind.landmarks if not _has(plain, prefix + mark)] for prefix in sorted(prefixes))
    return min((marks for marks in missing if 2 * len(marks) < len(kind.landmarks)), key=len, default=[])


def _but(others: list[str]) -> str:
    return f" but a {others[0]}" if others else ""


def _tensor_names(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and depth < DEPTH:
            yield from _tensor_names(value, f"{prefix}{key}.", depth + 1)
