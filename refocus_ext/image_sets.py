"""Sets of images to be measured: ADM's npz or a folder, read in batches; what a reference file stores beside them."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from refocus_ext.data import EXTENSIONS
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.inception import Gaussian

STATISTICS = {
    "pool": ("mu", "sigma", 2048),
    "spatial": ("mu_s", "sigma_s", 2023),
}  # names in ADM's files, and their width


class ImageSet(Protocol):
    """Images of one size in a fixed order; `labels` (N,) where they are known, `note` is a sentence for the user."""

    count: int
    size: tuple[int, int]  # H, W in pixels
    labels: np.ndarray | None
    note: str

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
        """Batches (B,H,W,3) uint8 number rank, rank + processes, ... of the whole."""
        ...


class Reference(NamedTuple):
    """What samples are compared with; each part may be absent, but not the images and `pool` both."""

    images: ImageSet | None
    pool: Gaussian | None
    spatial: Gaussian | None


def open_samples(name: str, threads: int) -> ImageSet:
    """The images in `name`.

    Raises:
        UsageError: there are none, or they are not RGB images of one size.
    """
    path = Path(name)
    if path.is_dir():
        return FolderImages(path, "--samples", None, threads)
    if not has_array(path, "--samples", "arr_0"):
        raise UsageError(
            f"--samples {path} holds no images (no arr_0); `bash run.sh sample --npz FILE` writes such a file."
        )
    return NpzImages(path, "--samples")


def open_reference(name: str, like: ImageSet, threads: int) -> Reference:
    """The statistics and images in `name`; a folder's images are brought to the size of `like`'s.

    Raises:
        UsageError: it holds neither images nor statistics, or not of the right form.
    """
    path = Path(name)
    if path.is_dir():
        return Reference(FolderImages(path, "--reference", like.size, threads), None, None)
    images = NpzImages(path, "--reference") if has_array(path, "--reference", "arr_0") else None
    pool, spatial = (_stored(path, *names) for names in STATISTICS.values())
    if images is None and pool is None:
        raise UsageError(
            f"--reference {path} holds neither images (arr_0) nor statistics (mu and sigma); give another file."
        )
    return Reference(images, pool, spatial)


# ------------------------------------------------------------------------------------------------ npz


def has_array(path: Path, flag: str, name: str) -> bool:
    """Whether an npz holds the array `name`.

    Raises:
        UsageError: the file is missing, or no npz.
    """
    if not path.is_file():
        raise UsageError(f"{flag} {path} is neither a file nor a folder; it takes an npz or a folder of images.")
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{name}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise UsageError(
            f"{flag} {path} is not an npz file, or is damaged; give another file, or a folder of images."
        ) from None


class NpzImages:
    """arr_0 of an npz, read as a stream whether compressed or not: never more than a batch is held.

    Raises:
        UsageError: arr_0 is not (N,H,W,3) uint8, or empty.
    """

    def __init__(self, path: Path, flag: str) -> None:
        self.path, self.note = path, ""
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
            shape, fortran, dtype = _read_header(entry)
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran or 0 in shape:
            raise UsageError(
                f"{flag} {path} has arr_0 of shape {shape} and type {dtype}; it must be images (N,H,W,3) of uint8."
            )
        self.count, self.size = shape[0], (shape[1], shape[2])
        self.labels = self._labels()

    def _labels(self) -> np.ndarray | None:
        """arr_1, where it is one whole number for each image."""
        labels = _array(self.path, "arr_1")
        whole = labels is not None and labels.shape == (self.count,) and labels.dtype.kind in "iu"
        return labels if whole else None

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
        """See `ImageSet`. Every process reads the whole stream, which is quick beside Inception.

        Raises:
            RunFailed: the file is damaged.
        """
        image_bytes = self.size[0] * self.size[1] * 3
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as entry:
                _read_header(entry)
                for number, first in enumerate(range(0, self.count, size)):
                    count = min(size, self.count - first)
                    data = entry.read(count * image_bytes)
                    if len(data) < count * image_bytes:
                        raise EOFError("it ends early")
                    if number % processes == rank:
                        yield np.frombuffer(data, np.uint8).reshape(count, *self.size, 3)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RunFailed(f"{self.path} could not be read to its end ({error}); copy or draw it anew.") from error


def _read_header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """(shape, Fortran order, type) of the array whose bytes follow."""
    version = np.lib.format.read_magic(entry)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(entry)


def _array(path: Path, name: str) -> np.ndarray | None:
    """A small array of an npz; None where there is none of this name.

    Raises:
        UsageError: it is damaged, or a pickle.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name] if name in arrays.files else None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        raise UsageError(f"{name} in {path} cannot be read as an array of numbers; copy the file anew.") from None


def _stored(path: Path, mean: str, covariance: str, width: int) -> Gaussian | None:
    """Statistics under these names, where they are there.

    Raises:
        UsageError: they are of another width.
    """
    mu, sigma = _array(path, mean), _array(path, covariance)
    if mu is None or sigma is None:
        return None
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise UsageError(
            f"--reference {path} has {mean} of shape {mu.shape}, but these features have {width} values; give another file."
        )
    return Gaussian(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double())


# ------------------------------------------------------------------------------------------------ folder


class FolderImages:
    """The images in a folder and its subfolders, by name.

    Args:
        size: (H,W) that images of another size are cropped (to the centre) and resized to; None insists on one size.
        threads: that decode.

    Raises:
        UsageError: there are none, one is no image, or without `size` they differ in size.
    """

    def __init__(self, folder: Path, flag: str, size: tuple[int, int] | None, threads: int) -> None:
        found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
        self.paths = sorted(path for path in found if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
        if not self.paths:
            raise UsageError(
                f"{flag} {folder} holds no images ({', '.join(EXTENSIONS)}); give another folder, or an npz."
            )
        self.count, self.threads = len(self.paths), max(1, threads)
        self.labels: np.ndarray | None = None
        with ThreadPoolExecutor(self.threads) as pool:
            sizes = list(pool.map(_size_of, self.paths))
        self.size = size or sizes[0]
        others = [(path, found) for path, found in zip(self.paths, sizes, strict=True) if found != self.size]
        if others and size is None:
            path, (height, width) = others[0]
            raise UsageError(
                f"{path} is {width}x{height} pixels and {self.paths[0].name} {self.size[1]}x{self.size[0]}; {flag} "
                "takes images of one size."
            )
        shown = f"{self.size[1]}x{self.size[0]} px (centre crop, Lanczos)"
        self.note = f"{len(others)} of {self.count} images in {folder} were brought to {shown}." if others else ""

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
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise RunFailed(f"{path} cannot be decoded; replace or remove it.") from error
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(image)


def _size_of(path: Path) -> tuple[int, int]:
    """(H,W)."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError:
        raise UsageError(f"{path} is not an image that can be opened; remove it or replace it.") from None
