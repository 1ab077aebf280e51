"""The weights that a student starts from: whether they fit it, and what becomes of their class embedding.

A VAR's number of classes shows in one tensor alone, `class_emb.weight` (classes + 1, C), whose last row is "no class". So weights
of another number of classes fit but for its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import choose_class_names, labels_of, name_of
from refocus_ext.storage.reading import Reading
from refocus_ext.storage.upstream_weights import VARGeometry, read_var, var_geometry

TABLE = "class_emb.weight"


@dataclass(frozen=True)
class Wanted:
    """The student's sizes, as far as loaded weights must have them."""

    depth: int
    shared_aln: bool
    patch_nums: tuple[int, ...]
    vocab_size: int
    z_channels: int


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    `rows` has for each class of the student the row of the file's class embedding, or None where it starts afresh; without it
    the whole table is kept. `lines` say it to the user.
    """

    path: Path
    rows: tuple[int | None, ...] | None = None
    lines: tuple[str, ...] = ()


def read_start(path: Path, wanted: Wanted) -> tuple[Reading, int]:
    """The weights of a VAR that fit the student, and their number of classes.

    Raises:
        UsageError: the file holds no VAR, or one of other sizes.
    """
    read = read_var(path)
    try:
        theirs = var_geometry(read.state)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"{path} is not an upstream VAR ({error}); give another file.") from None
    if differences := _differences(theirs, wanted):
        raise UsageError(
            f"{path} does not fit this student ({'; '.join(differences)}); only the number of classes may differ. The published "
            "var_dN.pth are of depth N and need the published VQVAE or a tokenizer of preset vanilla."
        )
    return read, theirs.num_classes


def plan_start(read: Reading, theirs: int, classes: int, words: str = "", data_classes: int = 0) -> Start:
    """What becomes of the class embedding of weights for `theirs` classes in a student of `classes`.

    Args:
        words: the file's classes whose rows the data's classes start from, numbers or names, in the order of the labels.
        data_classes: number of classes of the data.

    Raises:
        UsageError: the words do not name a class for each of the data's.
    """
    names = choose_class_names(None, read.path.parent / "classes.json", theirs)
    rows = _rows(names, theirs, classes, words, data_classes)
    return Start(read.path, rows, (*read.notes, *_lines(names, theirs, classes, rows, words)))


def _differences(theirs: VARGeometry, wanted: Wanted) -> list[str]:
    pairs = {
        "depth": (theirs.depth, wanted.depth),
        "width": (theirs.embed_dim, 64 * wanted.depth),
        "attention heads": (theirs.num_heads, wanted.depth),
        "normalized queries": (theirs.attn_l2_norm, True),
        "shared AdaLN": (theirs.shared_aln, wanted.shared_aln),
        "token maps": (theirs.patch_nums, wanted.patch_nums),
        "codes": (theirs.vocab_size, wanted.vocab_size),
        "latent channels": (theirs.z_channels, wanted.z_channels),
    }
    return [f"its {name}: {_show(a)}, the student's: {_show(b)}" for name, (a, b) in pairs.items() if a != b]


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ------------------------------------------------------------------------------------------------ the class embedding


def _rows(
    names: Sequence[str], theirs: int, classes: int, words: str, data_classes: int
) -> tuple[int | None, ...] | None:
    if not words and theirs == classes:
        return None
    rows: list[int | None] = list(range(classes)) if theirs == classes else [None] * classes
    if words:
        chosen = labels_of(words, names, theirs)
        if len(chosen) != data_classes:
            raise UsageError(
                f"{len(chosen)} classes are named to start from, but the data has {data_classes}; name one for each, in the "
                "order of the labels ('none' for the row of no class)."
            )
        rows[: len(chosen)] = chosen
    return tuple(rows)


def _lines(
    names: Sequence[str], theirs: int, classes: int, rows: Sequence[int | None] | None, words: str
) -> Iterator[str]:
    if rows is None:
        return
    sizes = f"class embedding: {theirs} classes in the file, {classes} in the student"
    if not words:
        yield f"{sizes}, so all rows start afresh but that of no class; everything else is kept"
        return
    chosen = [row for row in rows if row is not None]
    shown = ", ".join(f"{row} ({name_of(row, names, theirs)})" for row in chosen[:4]) + " ..." * (len(chosen) > 4)
    fresh = f", {len(rows) - len(chosen)} rows start afresh" * (len(chosen) < len(rows))
    yield f"{sizes}, which starts from the rows {shown}{fresh}; that of no class and everything else is kept"


def with_rows(state: dict[str, Tensor], rows: Sequence[int | None], fresh: Tensor) -> dict[str, Tensor]:
    """The state dict with the class embedding of a student.

    Args:
        rows: see `Start`.
        fresh: the student's own initial table (classes + 1, C).
    """
    table, theirs = fresh.clone(), state[TABLE].to(fresh.device)
    for label, row in enumerate(rows):
        if row is not None:
            table[label] = theirs[row]
    table[-1] = theirs[-1]
    return {**state, TABLE: table.to(torch.float32)}
