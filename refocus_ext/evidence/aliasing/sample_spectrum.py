"""Part (c) of the alias benchmark: does the energy spectrum of generated images follow that of the data?

Power over rings of equal frequency (cycles/pixel), Hann-windowed without the mean, averaged over images and colours. Images are
streamed: an npz of 50,000 is never held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.checks import check_images, size_of
from refocus_ext.images.crops import Crops, to_tensor
from refocus_ext.images.decode import BrokenImage, decode
from refocus_ext.images.npz import NpzImages, has_array
from refocus_ext.images.order import spread
from refocus_ext.images.photographs import find_photographs
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.optics.spectrum import radial_mean, spectrum

BATCH = 64  # images per read


@dataclass(frozen=True)
class ImageSet:
    """Square images of one size, (3, size, size) in [-1, 1], read one by one."""

    name: str
    count: int
    size: int
    images: Iterator[Tensor]


def open_images(word: str, at_most: int | None, size: int | None = None) -> ImageSet:
    """An npz with arr_0 (N,H,H,3) uint8, or a folder of images.

    Args:
        size: resize and centre-crop a folder's images to this size, as training does, all but those that have it; without it they
            must already be square and equal, as samples are.

    Raises:
        UsageError: it is neither, or the sizes differ.
    """
    path = Path(word)
    if path.is_dir():
        return _open_folder(word, at_most, size)
    return _open_npz(path, at_most, size)


def _open_folder(word: str, at_most: int | None, size: int | None) -> ImageSet:
    images = find_photographs([word], at_most)
    if size is not None:
        note = check_images(images, size, "upsample")
        if note:
            print(f"note: {word}: {note}")
        whole = [size_of(images, index) == (size, size) for index in range(len(images))]
        if 0 < sum(whole) < len(whole):
            print(
                f"note: {word}: {len(whole) - sum(whole)} of {len(whole)} images are resized to {size} px and cropped"
            )
        return ImageSet(word, len(images), size, _sized(images, size, whole))
    side = size_of(images, 0)[0]
    for index in range(len(images)):
        width, height = size_of(images, index)
        if (width, height) != (side, side):
            raise UsageError(
                f"{images.name(index)} is {width} x {height} pixels; samples must be square and all have the same size."
            )
    return ImageSet(word, len(images), side, _whole(images))


def _sized(images: ImageSource, size: int, whole: Sequence[bool]) -> Iterator[Tensor]:
    """Images that have the size as they are: enlarged and cropped they would lose their finest octave."""
    crops = Crops(images, size, random=False)
    for index, own in enumerate(whole):
        yield _decoded(images, index) if own else crops[index].image


def _whole(images: ImageSource) -> Iterator[Tensor]:
    for index in range(len(images)):
        yield _decoded(images, index)


def _decoded(images: ImageSource, index: int) -> Tensor:
    try:
        with images.open(index) as file:
            return to_tensor(decode(file))
    except BrokenImage as error:
        raise RunFailed(f"{images.name(index)} {error}; replace or remove it.") from error


def _open_npz(path: Path, at_most: int | None, size: int | None) -> ImageSet:
    if not has_array(path, "arr_0"):
        raise UsageError(f"{path} holds no images (no arr_0); `bash run.sh sample --npz FILE` writes such a file.")
    images = NpzImages(path)
    side = images.size[0]
    if images.size != (side, side):
        raise UsageError(f"{path} holds images of {images.size[1]} x {side} px; they must be square.")
    if size is not None and side != size:
        raise UsageError(f"{path} holds images of {side} px but the samples have {size}; they must be equal.")
    chosen = spread(range(images.count), at_most or images.count)
    return ImageSet(str(path), len(chosen), side, _picked(images, set(chosen)))


def _picked(images: NpzImages, wanted: set[int]) -> Iterator[Tensor]:
    for batch, first in zip(images.batches(BATCH), range(0, images.count, BATCH), strict=True):
        yield from (
            to_tensor(Image.fromarray(batch[i - first])) for i in range(first, first + len(batch)) if i in wanted
        )


@dataclass(frozen=True)
class Octave:
    """Energy of samples against data in one octave of frequencies [low, high) cycles/pixel, dB."""

    low: float
    high: float
    difference_dB: float


@dataclass(frozen=True)
class SampleReport:
    """Power per ring (squared units of the image per DFT bin, scaled so that all bins sum to the variance) and octaves."""

    samples: int
    reference: int
    size: int
    frequency: list[float]
    power_samples: list[float]
    power_reference: list[float]
    octaves: list[Octave]


def mean_power(images: Iterator[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Frequencies (R,), power per ring (R,) averaged over images and colours, and the number of images."""
    total, count = torch.zeros(()), 0
    f = torch.zeros(0)
    for image in images:
        X = spectrum(image, periodic=False)
        f, rings = radial_mean((X.abs().square() / X[0].numel() ** 2).mean(dim=0))
        total, count = total + rings, count + 1
    return f, total / count, count


def compare(samples: ImageSet, reference: ImageSet) -> SampleReport:
    """The two spectra and their differences per octave."""
    f, ours, n_ours = mean_power(samples.images)
    _, theirs, n_theirs = mean_power(reference.images)
    return SampleReport(
        n_ours, n_theirs, samples.size, f.tolist(), ours.tolist(), theirs.tolist(), _octaves(f, ours, theirs)
    )


def _octaves(f: Tensor, ours: Tensor, theirs: Tensor) -> list[Octave]:
    out, high = [], 0.5
    while high > float(f[0]):
        ring = (f >= high / 2) & (f < high)
        # Rings grow with frequency: f weighs each by its share of the plane.
        energies = [float((power[ring] * f[ring]).sum()) for power in (ours, theirs)]
        if min(energies) > 0:
            out.append(Octave(high / 2, high, 10 * math.log10(energies[0] / energies[1])))
        high /= 2
    return out[::-1]
