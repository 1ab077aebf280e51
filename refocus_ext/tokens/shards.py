"""The files of a token cache: arrays of a fixed number of images each, complete or absent, with a checksum in the name.

A shard is a `.npy` array (images, V views, L + T + 1) of uint16: structure tokens, alias tokens, and in the last column
the offset to the image that was tokenized instead: 0, or more for an image that cannot be decoded.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import sha256, written_beside
from refocus_ext.tokens.tokenize import token_counts
from refocus_ext.tokens.trained_tokenizer import Tokenizer

LARGEST_CODEBOOK = 2**16
SHARD_IMAGES = 2048
MOST_SHARDS = 512  # a loader process keeps every shard open, and 1024 open files is a common limit
_NAME = re.compile(r"shard-(\d{5})-([0-9a-f]{16})\.npy$")


@dataclass(frozen=True)
class Layout:
    """Counts that determine the shape of every shard."""

    images: int
    views: int
    structure: int  # L
    alias: int  # T
    shard_images: int

    @property
    def columns(self) -> int:
        return self.structure + self.alias + 1

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard_images)

    @property
    def tokens(self) -> int:
        """Of the whole cache."""
        return self.images * self.views * (self.structure + self.alias)

    @property
    def bytes(self) -> int:
        """Of the whole cache, without the shards' headers."""
        return 2 * self.images * self.views * self.columns

    def images_of(self, shard: int) -> range:
        return range(shard * self.shard_images, min(self.images, (shard + 1) * self.shard_images))

    def shape(self, shard: int) -> tuple[int, int, int]:
        return len(self.images_of(shard)), self.views, self.columns


def layout_of(tokenizer: Tokenizer, images: int, views: int, shard_images: int | None = None) -> Layout:
    """The layout of a tokenizer's cache.

    Raises:
        UsageError: a codebook whose indices do not fit 16 bits.
    """
    codebooks = {"structure": tokenizer.vae.quantize.vocab_size}
    if tokenizer.alias is not None:
        codebooks["alias"] = tokenizer.alias.vocab_size
    for name, codes in codebooks.items():
        if codes > LARGEST_CODEBOOK:
            raise UsageError(
                f"the {name} codebook of {tokenizer.path} has {codes} codes; a token cache holds 16-bit tokens, so at most "
                f"{LARGEST_CODEBOOK}; train with the cache off."
            )
    shard_images = shard_images or max(SHARD_IMAGES, math.ceil(images / MOST_SHARDS))
    return Layout(images, views, *token_counts(tokenizer), shard_images)


def find_shards(folder: Path, layout: Layout) -> dict[int, Path]:
    """The existing shards by number; their contents are not read.

    Raises:
        UsageError: a folder has the name of a shard.
    """
    matches = ((_NAME.search(path.name), path) for path in sorted(folder.glob("shard-*.npy")))
    found = {int(match[1]): path for match, path in matches if match and int(match[1]) < layout.shards}
    for path in found.values():
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a shard of the token cache; remove it.")
    return found


def write_shard(folder: Path, shard: int, rows: np.ndarray) -> Path:
    """Publishes a shard under its number and checksum with one rename.

    Raises:
        RunFailed: the disk is full or not writable; the other shards are untouched.
    """
    draft = folder / f".shard-{shard:05d}.draft.part"
    try:
        with written_beside(draft) as beside, open(beside, "wb") as file:
            np.save(file, rows)
        path = folder / f"shard-{shard:05d}-{sha256(draft)[:16]}.npy"
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunFailed(
            f"shard {shard} of the token cache could not be written to {folder} ({error.strerror or error}); the shards "
            "before it are intact, so free some space and rerun the same command to resume."
        ) from error
    return path


def intact(path: Path, layout: Layout) -> bool:
    """Whether a shard's contents match the checksum in its name and its layout; the whole file is read."""
    match = _NAME.search(path.name)
    assert match
    try:
        if sha256(path)[:16] != match[2]:
            return False
        rows = open_shard(path)
    except (OSError, ValueError, EOFError):
        return False
    return rows.shape == layout.shape(int(match[1])) and rows.dtype == np.uint16


def open_shard(path: Path) -> np.ndarray:
    """The array of a shard, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def broken_in(path: Path, layout: Layout) -> set[int]:
    """Indices of the shard's images that could not be decoded."""
    match = _NAME.search(path.name)
    assert match
    first = layout.images_of(int(match[1])).start
    return {first + int(row) for row in np.flatnonzero(open_shard(path)[:, 0, -1])}
