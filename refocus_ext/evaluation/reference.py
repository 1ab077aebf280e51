"""The reference of an evaluation: images, or ADM's or pytorch-fid's statistics of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from refocus_ext.errors import UsageError
from refocus_ext.evaluation.frechet import Gaussian
from refocus_ext.images.npz import NpzImages, _array, has_array
from refocus_ext.images.readers import FolderImages, ImageSet

STATISTICS = {
    "pool": ("mu", "sigma", 2048),
    "spatial": ("mu_s", "sigma_s", 2023),
}  # names in ADM's files, and their width

COUNT, STANDARD = "count", "standard_inception"  # of our own files; others ignore them


class Reference(NamedTuple):
    """The reference of samples; parts may be absent, but not both the images and `pool`.

    Attributes:
        statistics_images: images behind the stored statistics, None if the file does not tell.
        standard: whether they were computed with the published Inception weights, None if the file does not tell.
    """

    images: ImageSet | None
    pool: Gaussian | None
    spatial: Gaussian | None
    statistics_images: int | None = None
    standard: bool | None = None


def open_reference(name: str, like: ImageSet, threads: int) -> Reference:
    """The statistics and images in `name`; a folder's images are resized to the size of `like`'s.

    Raises:
        UsageError: it holds neither images nor statistics, or has the wrong format.
    """
    path = Path(name)
    if path.is_dir():
        return Reference(FolderImages(path, like.size, threads), None, None)
    images = NpzImages(path) if has_array(path, "arr_0") else None
    pool, spatial = (_stored(path, *names) for names in STATISTICS.values())
    if images is None and pool is None:
        raise UsageError(f"{path} holds neither images (arr_0) nor statistics (mu and sigma); give another file.")
    count, standard = _single(path, COUNT), _single(path, STANDARD)
    return Reference(
        images, pool, spatial, None if count is None else int(count), None if standard is None else bool(standard)
    )


def _single(path: Path, name: str) -> Any | None:
    """A number of an npz, if there is one under this name; other programs' arrays of that name are none."""
    found = _array(path, name)
    return found.item() if found is not None and found.size == 1 and found.dtype.kind in "biuf" else None


def _stored(path: Path, mean: str, covariance: str, width: int) -> Gaussian | None:
    """The statistics under these names, if there are any.

    Raises:
        UsageError: they are of another width.
    """
    mu, sigma = _array(path, mean), _array(path, covariance)
    if mu is None or sigma is None:
        return None
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise UsageError(
            f"{path} has {mean} of shape {mu.shape}, but these features have {width} values; give another file."
        )
    return Gaussian(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double())
