"""One training image: resized, cropped, mirrored; a broken one is replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from refocus_ext.errors import RunFailed
from refocus_ext.images.checks import broken_limit
from refocus_ext.images.decode import BrokenImage, load_resized
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import Stream, stream_seed


class Sample(NamedTuple):
    """One image, or a batch of them after collation."""

    image: Tensor  # (3,H,W) or (B,3,H,W), in [-1,1]
    label: Any  # int, or (B,) int64
    broken: Any  # index of an image that could not be decoded and was replaced, else -1


class Crops(Dataset[Sample]):
    """Random crops for training, centre crops for validation; the crop depends only on (seed, epoch, index).

    An image that cannot be decoded is always replaced by the next one that can, and reported in the sample.

    Args:
        scale: the shorter side is first resized to `scale * size`.
        random: random crop and flip (keys are `SampleKey`) or centre crop (keys are indices).
    """

    def __init__(
        self,
        images: ImageSource,
        size: int,
        *,
        scale: float = 1.125,
        hflip: bool = False,
        random: bool = True,
        seed: int = 0,
    ) -> None:
        self.images, self.size, self.hflip, self.random, self.seed = images, size, hflip, random, seed
        self.shorter = max(size, round(scale * size))
        self._cache: dict[int, Image.Image] = {}
        self.known_broken: set[int] = set()
        self.broken_limit = broken_limit(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        index = key.index if isinstance(key, SampleKey) else key
        (sample,), _ = self.of(index, [key])
        return sample

    def of(self, index: int, keys: Sequence[SampleKey | int]) -> tuple[list[Sample], int]:
        """Several crops of an image, decoded once, and the index of the image that they are of (`decodable`)."""
        if self.images.drawn:
            return [self._drawn(key, index) for key in keys], index
        other, image = self.decodable(index)
        return [self._sample(key, other, image, index if other != index else -1) for key in keys], other

    def told(self, index: int) -> Sample:
        """`self[index]` in this process, with a line the first time that it is another image's because this one is broken."""
        sample = self[index]
        if sample.broken >= 0 and index not in self.known_broken:
            self.known_broken.add(index)
            print(f"broken image replaced in validation: {self.images.name(index)}", flush=True)
        return sample

    def decodable(self, index: int) -> tuple[int, Image.Image]:
        """The resized image and its index, or those of the next image that can be decoded.

        Raises:
            RunFailed: none of the next 50 can.
        """
        for offset in range(min(50, len(self.images))):
            other = (index + offset) % len(self.images)
            with contextlib.suppress(BrokenImage):
                return other, self._resized(other)
        raise RunFailed(f"{self.images.name(index)} and the images after it cannot be decoded; check the folder.")

    def _drawn(self, key: SampleKey | int, index: int) -> Sample:
        """The image of a drawn source: a new one for every epoch in training, always the same one in validation."""
        epoch = 0
        if self.random:
            assert isinstance(key, SampleKey)
            epoch = key.epoch
        picture = self.images.draw(index, self.size, self.seed if self.random else 0, epoch)
        return Sample(to_tensor(picture), self.images.label(index), -1)

    def _sample(self, key: SampleKey | int, index: int, image: Image.Image, broken: int) -> Sample:
        free = [side - self.size for side in image.size]
        left, top, flip = round(free[0] / 2), round(free[1] / 2), False  # torchvision's CenterCrop
        if self.random:
            assert isinstance(key, SampleKey)
            rng = np.random.default_rng(stream_seed(self.seed, Stream.CROPS, key.epoch, index))
            left, top = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
            flip = self.hflip and bool(rng.integers(2))
        crop = image.crop((left, top, left + self.size, top + self.size))
        if flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Sample(to_tensor(crop), self.images.label(index), broken)

    def _resized(self, index: int) -> Image.Image:
        if len(self.images) > 64:
            return self._load(index)
        if index not in self._cache:  # the demo's few photographs are decoded once
            self._cache[index] = self._load(index)
        return self._cache[index]

    def _load(self, index: int) -> Image.Image:
        try:
            with self.images.open(index) as file:
                return load_resized(file, self.shorter, self.images.square)
        except (BrokenImage, OSError) as error:
            raise BrokenImage(f"{self.images.name(index)} {error}") from error


def to_tensor(image: Image.Image) -> Tensor:
    """PIL image -> (3,H,W) in [-1,1]."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return array.to(torch.float32).div_(127.5).sub_(1)
