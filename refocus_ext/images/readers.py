"""Sets of images to measure: ADM's npz or a folder, read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.decode import BrokenImage, decode, read_header
from refocus_ext.images.npz import NpzImages, has_array
from refocus_ext.images.sources.files import EXTENSIONS, find_pictures, shown


class ImageSet(Protocol):
    """Images of one size in a fixed order; `labels` (N,) if they are known, `note` is a sentence for the user."""

    count: int
    size: tuple[int, int]  # H, W in pixels
    labels: np.ndarray | None
    note: str

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
        """Batches (B,H,W,3) uint8 with the numbers rank, rank + processes, ..."""
        ...


def open_samples(name: str, threads: int) -> ImageSet:
    """The images in `name`.

    Raises:
        UsageError: there are none, or they are not RGB images of one size.
    """
    path = Path(name)
    if path.is_dir():
        return FolderImages(path, None, threads)
    if not has_array(path, "arr_0"):
        raise UsageError(f"{path} holds no images (no arr_0); `bash run.sh sample --npz FILE` writes such a file.")
    return NpzImages(path)


# ------------------------------------------------------------------------------------------------ folder


class FolderImages:
    """The images in a folder and its subfolders, by name.

    Args:
        size: (H,W) to which images of another size are centre-cropped and resized; None requires one size.
        threads: number of decoding threads.

    Raises:
        UsageError: there are none, one is not an image, or without `size` they differ in size.
    """

    def __init__(self, folder: Path, size: tuple[int, int] | None, threads: int) -> None:
        self.paths = sorted(Path(*picture) for picture in find_pictures(folder).pictures)
        if not self.paths:
            raise UsageError(f"{folder} holds no images ({', '.join(EXTENSIONS)}); give another folder, or an npz.")
        self.count, self.threads = len(self.paths), max(1, threads)
        self.labels: np.ndarray | None = None
        self.shorter = max(size) if size else None  # what a huge JPEG is decoded for
        with ThreadPoolExecutor(self.threads) as pool:
            sizes = list(pool.map(self._size_of, self.paths))
        self.size = size or sizes[0]
        others = [(path, found) for path, found in zip(self.paths, sizes, strict=True) if found != self.size]
        if others and size is None:
            path, (height, width) = others[0]
            raise UsageError(
                f"{path} is {width}x{height} pixels and {self.paths[0].name} {self.size[1]}x{self.size[0]}; "
                "samples must all have the same size."
            )
        shown = f"{self.size[1]}x{self.size[0]} px (centre crop, Lanczos)"
        self.note = f"{len(others)} of {self.count} images in {folder} were resized to {shown}." if others else ""

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
        """See `ImageSet`.

        Raises:
            RunFailed: a file cannot be decoded.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            for first in range(rank * size, self.count, processes * size):
                yield np.stack(list(pool.map(self._load, self.paths[first : first + size])))

    def _load(self, path: Path) -> np.ndarray:
        height, width = self.size
        try:
            with open(path, "rb") as file:
                image = decode(file, self.shorter)
        except BrokenImage as error:
            raise RunFailed(f"{shown(str(path))} {error}; replace or remove it.") from error
        except OSError as error:
            raise RunFailed(f"{shown(str(path))} cannot be read ({error.strerror}); replace or remove it.") from error
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def _size_of(self, path: Path) -> tuple[int, int]:
        """(H,W) of the upright image."""
        try:
            with open(path, "rb") as file:
                header = read_header(file, self.shorter)
        except BrokenImage as error:
            raise UsageError(f"{shown(str(path))} {error}; remove it or replace it.") from None
        except OSError as error:
            raise UsageError(
                f"{shown(str(path))} cannot be read ({error.strerror}); remove it or replace it."
            ) from None
        return header.height, header.width
