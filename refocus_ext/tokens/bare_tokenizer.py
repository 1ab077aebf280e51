"""A published or foreign VQVAE as a tokenizer: from its file alone, without a stage-1 run.

The tensors show the number of codes, their channels and the base width. What they do not show is `Assumed`, or is read from
the configuration of a distill run or of an export where the file lies in one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patches import Focus, load_upstream
from patches.upstream import VAR_PATCH_NUMS
from refocus_ext.errors import UsageError
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage.reading import VQVAE, Reading, find_network
from refocus_ext.storage.upstream_weights import VAEGeometry, read_vae, scales_of_vae, vae_geometry
from refocus_ext.storage.weights import load_strictly
from refocus_ext.tokenizer.stage_one import StageOne
from refocus_ext.tokens.trained_tokenizer import Tokenizer, load_tokenizer

STRIDE = 16  # pixels per latent cell
STATES, RHO_MAX, RHO_SIZE = 4, 12.0, 256  # the paper's pyramid: its radius is for images of 256 px
MOST_WORKERS = 8


ASSUMED_BY = "--patch-nums, --focus-states, --rho-max"  # a command's options for `Assumed`


class WrongAssumption(UsageError):
    """What is assumed of a bare file does not fit the file, or its parts each other."""


@dataclass(frozen=True)
class Assumed:
    """What a bare file of VQVAE weights does not say. None takes the default.

    Args:
        patch_nums: sides of the token maps; default: VAR's ten. The image size is 16 times the last.
        blur: of the focus pyramid; default: "none", because VAR's weights were not trained on focus states.
        states, rho_max: focus states and largest radius (pixels); default: 4 and 12 px at 256 px, less for smaller images.
    """

    patch_nums: tuple[int, ...] | None = None
    blur: str | None = None
    states: int | None = None
    rho_max: float | None = None

    def given(self) -> list[str]:
        """The names of those that are not None."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]


def open_tokenizer(path: Path, device: torch.device | str = "cpu", assumed: Assumed | None = None) -> Tokenizer:
    """A tokenizer from the run folder of `bash run.sh tokenizer`, or from a file of VQVAE weights, or a folder with one.

    Raises:
        UsageError: it is none of these, or something is assumed that the folder's configuration records.
    """
    assumed = assumed or Assumed()
    if (run := run_of(path)) is not None:
        if run.exists() and (given := assumed.given()):
            raise UsageError(
                f"{path} is a run with its own configuration, which no {_words(given)} can change; omit it."
            )
        return load_tokenizer(run, device)
    return load_bare(path, device, assumed)


def run_of(path: Path) -> Path | None:
    """The run folder that `path` means: itself, or that of a tokenizer's vae.pth; None for a bare file of weights."""
    if path.is_file():
        return path.parent if path.name == "vae.pth" and _config(path.parent).get("command") == "tokenizer" else None
    bare = path.is_dir() and not (path / "config.json").is_file() and _holds_vae(path)
    return None if bare else path


def _holds_vae(folder: Path) -> bool:
    return any(entry.is_file() for pattern in VQVAE.patterns for entry in folder.glob(pattern))


def _words(names: Sequence[str]) -> str:
    return " or ".join(names)


def load_bare(path: Path, device: torch.device | str, assumed: Assumed) -> Tokenizer:
    """The tokenizer of a file of VQVAE weights; it has no alias tokenizer and knows no data.

    Raises:
        WrongAssumption: they do not fit what is assumed.
        UsageError: the file holds no such weights.
    """
    file = find_network(path, VQVAE)
    recorded = _recorded(file)
    if recorded and (given := assumed.given()):
        raise UsageError(f"{file} has a configuration beside it, which no {_words(given)} can change; omit it.")
    read = read_vae(file)
    geometry = _geometry(read)
    sides = tuple(recorded["patch_nums"]) if recorded else assumed.patch_nums or VAR_PATCH_NUMS
    pyramid = _pyramid(file, recorded, assumed, sides)
    other = _other_scales(read, sides)
    if other and not assumed.patch_nums:
        raise WrongAssumption(f"{file} {other}; give the patch_nums that it was trained with.")
    vae = _build(read, geometry, sides, device)
    Focus(pyramid).apply(vae)
    config = {"weights": {"vae.pth": digest_of(read.state)}}
    notes = (_description(geometry, pyramid, sides), *read.notes, *([f"it {other}"] if other else []))
    return Tokenizer(vae, None, pyramid, config, _untold(geometry, sides), file, notes, bare=True)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """sha256 of a network's tensors: the same in every layout of its file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ what the file says


def _geometry(read: Reading) -> VAEGeometry:
    try:
        return vae_geometry(read.state)
    except (KeyError, IndexError) as error:
        raise UsageError(f"{read.path} is not an upstream VQVAE (it lacks {error}); give another file.") from None


def _other_scales(read: Reading, sides: Sequence[int]) -> str:
    """A clause where the file shows another number of token maps; the VQVAE works with any, but was trained with those."""
    scales = scales_of_vae(read.state)
    if scales is None or scales == len(sides):
        return ""
    return f"was trained with {scales} token maps, but {len(sides)} are assumed ({','.join(map(str, sides))})"


def _build(read: Reading, geometry: VAEGeometry, sides: Sequence[int], device: torch.device | str) -> Any:
    vae = load_upstream().build_vae(**dataclasses.asdict(geometry), patch_nums=tuple(sides), device=device)
    load_strictly(vae, read.state, f"{read.path} is not an upstream VQVAE ({{reason}}).")
    return vae.requires_grad_(False).eval()


# ------------------------------------------------------------------------------------------------ what it does not say


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        config = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _recorded(file: Path) -> dict[str, Any]:
    """patch_nums and pyramid as the distill run or the export records them in whose folder the file lies; else empty."""
    run, export = _config(file.parent), _config(file.parent, "geometry.json")
    for config, part in ((run, "vae"), (export, "build_vae_var")):
        sides = config[part].get("patch_nums") if isinstance(config.get(part), dict) else None
        if sides and config.get("pyramid") and file.name in (config.get("weights") or {}):
            return {"patch_nums": sides, "pyramid": config["pyramid"]}
    return {}


def _pyramid(file: Path, recorded: dict[str, Any], assumed: Assumed, sides: Sequence[int]) -> FocusPyramid:
    size = STRIDE * max(sides)
    states = min(STATES, max(sides).bit_length()) if assumed.states is None else assumed.states
    rho = RHO_MAX * size / RHO_SIZE if assumed.rho_max is None else assumed.rho_max
    try:
        if recorded:
            pyramid = FocusPyramid.from_dict(recorded["pyramid"])
        else:
            pyramid = FocusPyramid(image_size=size, states=states, rho_max=rho, blur=assumed.blur or "none")
        pyramid.states_of(sides)
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAssumption(f"{file}: {str(error).rstrip('.')}.") from None
    if len(sides) < 2:
        raise WrongAssumption(f"{file}: patch_nums {','.join(map(str, sides))} is one token map; give at least two.")
    return pyramid


def _untold(geometry: VAEGeometry, sides: Sequence[int]) -> StageOne:
    """As if a run had trained it, on unknown data."""
    return StageOne(
        preset="vanilla",
        data="",
        small_images="upsample",  # as VAR's own loading does
        crop_scale=1.125,
        workers=min(MOST_WORKERS, (os.cpu_count() or 1) - 1),
        steps=None,
        image_size=STRIDE * sides[-1],
        patch_nums=tuple(sides),
        codebook_size=geometry.vocab_size,
        latent_channels=geometry.z_channels,
        ch=geometry.ch,
        commitment=0.25,
    )


def _description(geometry: VAEGeometry, pyramid: FocusPyramid, sides: Sequence[int]) -> str:
    return (
        f"a bare file, {geometry.vocab_size} codes of {geometry.z_channels}, ch {geometry.ch}; taken with token maps "
        f"{','.join(map(str, sides))}, blur {pyramid.blur} and no alias tokenizer"
    )
