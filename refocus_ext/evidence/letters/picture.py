"""A picture of all kinds of drawn letters, and of letters spoiled in each way."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.evidence.letters.measures import fresh_letters
from refocus_ext.evidence.letters.reader import READ_AT
from refocus_ext.evidence.letters.spoiled import KINDS
from refocus_ext.images.picture import grid
from refocus_ext.images.sources.kinds import find_split
from refocus_ext.images.sources.letters import LEVELS

COLUMNS, SIDE = 8, 128


def letters_picture(data: str) -> Image.Image:
    """Eight pictures of each level, and eight of `data` spoiled in each way."""
    names = [*LEVELS, f"{data}-unseen", *(f"{data}: {kind}" for kind in KINDS if kind != "fresh letters")]
    rows = [_fresh(level, SIDE) for level in LEVELS] + [_fresh(f"{data}-unseen", SIDE)]
    letters = torch.stack(_fresh(data, READ_AT.get(data, 64)))
    rows += [list(spoil(letters)) for kind, spoil in KINDS.items() if kind != "fresh letters"]
    return grid(rows, [""] * COLUMNS, names=names, side=SIDE)


def _fresh(data: str, side: int) -> list[Tensor]:
    """The level's pictures at its own size, enlarged by repeating pixels."""
    size = READ_AT.get(data.removesuffix("-unseen"), 64)
    source = find_split(data, "val")
    image, _ = next(fresh_letters(source, size, len(source.classes), len(source.classes)))
    chosen = image[:: len(image) // COLUMNS][:COLUMNS]  # of different classes
    return list(F.interpolate(chosen, (side, side), mode="nearest") if side > size else chosen)
