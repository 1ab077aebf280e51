"""Images: an ImageFolder or the demo photographs, their checks, and a data order that only (seed, step) decides."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from refocus_ext.errors import RunFailed, UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
SMALL_DATA_SET = (
    5000  # up to here every image's header is read before training starts, beyond it an even sample of this many
)

# The photographs that ship inside scikit-image's wheel (no download); drawings, charts and icons are left out.
DEMO_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip


@dataclass(frozen=True)
class ImageList:
    """Paths with labels. `classes[label]` is the class name: the folder, or the photograph of the demo.

    `square` images are cut to their central square first, so that a random crop covers most of one.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    square: bool = False

    def __len__(self) -> int:
        return len(self.paths)


def demo_photographs() -> ImageList:
    """The demo's photographs, one class each.

    Raises:
        UsageError: scikit-image is missing, or holds fewer of them than it used to.
    """
    try:
        import skimage
    except ImportError:
        raise UsageError(
            "the demo photographs come with scikit-image, which is not installed; install it or give --data DIR."
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in DEMO_PHOTOGRAPHS if (folder / name).is_file()]
    if len(paths) < len(DEMO_PHOTOGRAPHS) // 2:
        raise UsageError(f"this scikit-image ships only {len(paths)} of the demo photographs; give --data DIR.")
    classes = tuple(path.stem for path in paths)
    return ImageList(tuple(map(str, paths)), tuple(range(len(paths))), classes, square=True)


# ------------------------------------------------------------------------------------------------ image folders


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    found = (Path(root) / name for root, _, names in sorted(os.walk(folder)) for name in sorted(names))
    return [str(path) for path in found if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]


def image_folder(root: str, split: str) -> ImageList:
    """`root/split/CLASS/*.jpg` as VAR expects ImageNet.

    Raises:
        UsageError: a folder is missing or empty, or a class has no images.
    """
    base = Path(root)
    if not base.is_dir():
        raise UsageError(
            f"--data {root} is not a folder; it takes one that holds train/CLASS/*.JPEG and val/CLASS/*.JPEG."
        )
    folder = base / split
    if not folder.is_dir():
        inside = ", ".join(sorted(entry.name for entry in os.scandir(base))[:5]) or "nothing"
        raise UsageError(
            f"--data {root} has no {split}/ folder (it holds {inside}); images belong in {split}/CLASS/*.JPEG."
        )
    classes = _subfolders(folder)
    if not classes:
        raise UsageError(f"{folder} has no class folders; images belong in {folder}/CLASS/*.JPEG.")
    per_class = [_images(path) for path in classes]
    for path, images in zip(classes, per_class, strict=True):
        if not images:
            raise UsageError(
                f"the class folder {path} holds no images ({', '.join(EXTENSIONS)}); fill it or remove it."
            )
    return ImageList(
        paths=tuple(image for images in per_class for image in images),
        labels=tuple(label for label, images in enumerate(per_class) for _ in images),
        classes=tuple(path.name for path in classes),
    )


def check_images(images: ImageList, crop: int, small_images: str) -> str | None:
    """Reads the headers of the images (all up to SMALL_DATA_SET, else that many spread evenly).

    Returns:
        A line for the user if small images will be upsampled.

    Raises:
        UsageError: a file that is no image, or one smaller than the crop where that is refused.
    """
    stride = max(1, len(images) // SMALL_DATA_SET)
    checked, small = images.paths[::stride], []
    refuse = small_images == "refuse" or (small_images == "auto" and len(images) <= SMALL_DATA_SET)
    for path in checked:
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError:
            raise UsageError(f"{path} is not an image that can be opened; remove it or replace it.") from None
        if min(size) < crop:
            small.append(path)
            if refuse:
                raise UsageError(
                    f"{path} is {size[0]}x{size[1]} pixels, smaller than the {crop} pixel crop; remove it, choose a smaller "
                    f"--image-size, or allow it with --small-images upsample."
                )
    if not small:
        return None
    return f"{len(small)} of {len(checked)} images checked are smaller than {crop} px and are upsampled, as VAR does"


# ------------------------------------------------------------------------------------------------ samples


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from integers (seed, epoch, index, ...), well mixed."""
    words = [word for part in parts for word in (part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF)]
    high, low = np.random.SeedSequence(words).generate_state(2)
    return (int(high) << 31) ^ int(low)


def load_resized(path: str, shorter: int, square: bool = False) -> Image.Image:
    """RGB image whose shorter side is `shorter` pixels (Lanczos, as VAR), of its central square if asked."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if square:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    width, height = image.size
    scale = shorter / min(width, height)
    return image.resize(
        (max(shorter, round(width * scale)), max(shorter, round(height * scale))), Image.Resampling.LANCZOS
    )


def to_tensor(image: Image.Image) -> Tensor:
    """PIL image -> (3,H,W) in [-1,1]."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return array.to(torch.float32).div_(127.5).sub_(1)


class BrokenImage(Exception):
    """A file whose header may be fine but whose pixels cannot be read."""


@dataclass(frozen=True)
class SampleKey:
    """One image of one epoch: what a crop's randomness is derived from."""

    epoch: int
    index: int


class Sample(NamedTuple):
    """One image, or a batch of them after collation."""

    image: Tensor  # (3,H,W) or (B,3,H,W), in [-1,1]
    label: Any  # int, or (B,) int64
    broken: Any  # index of an image that could not be decoded and was replaced, else -1


def broken_limit(images: ImageList) -> int:
    """Images that may turn out to be broken before a command stops."""
    return max(3, len(images) // 100)


class Crops(Dataset[Sample]):
    """Random crops for training, centre crops for validation; the crop depends only on (seed, epoch, index).

    An image that cannot be decoded is replaced by the next one that can, always the same, and reported in the sample.

    Args:
        scale: the shorter side is first resized to `scale * size`.
        random: random crop and flip (keys are `SampleKey`) or centre crop (keys are indices).
    """

    def __init__(
        self,
        images: ImageList,
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
        other, image = self.decodable(index)
        return self._sample(key, other, image, index if other != index else -1)

    def decodable(self, index: int) -> tuple[int, Image.Image]:
        """The image, resized, and its index; of the next one that can be decoded where it cannot.

        Raises:
            RunFailed: none of the next 50 can.
        """
        for offset in range(min(50, len(self.images))):
            other = (index + offset) % len(self.images)
            with contextlib.suppress(BrokenImage):
                return other, self._resized(other)
        raise RunFailed(
            f"{self.images.paths[index]} and the images after it cannot be decoded; is this the right folder?"
        )

    def _sample(self, key: SampleKey | int, index: int, image: Image.Image, broken: int) -> Sample:
        free = [side - self.size for side in image.size]
        left, top, flip = free[0] // 2, free[1] // 2, False
        if self.random:
            assert isinstance(key, SampleKey)
            rng = np.random.default_rng(derived_seed(self.seed, 1, key.epoch, index))
            left, top = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
            flip = self.hflip and bool(rng.integers(2))
        crop = image.crop((left, top, left + self.size, top + self.size))
        if flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Sample(to_tensor(crop), self.images.labels[index], broken)

    def _resized(self, index: int) -> Image.Image:
        if len(self.images) > 64:
            return self._load(index)
        if index not in self._cache:  # the demo's few photographs are decoded once
            self._cache[index] = self._load(index)
        return self._cache[index]

    def _load(self, index: int) -> Image.Image:
        path = self.images.paths[index]
        try:
            return load_resized(path, self.shorter, self.images.square)
        except (OSError, SyntaxError, ValueError) as error:
            raise BrokenImage(path) from error


class StepBatches(Sampler[list[SampleKey]]):
    """The batches of steps `start .. stop-1`, cut from one endless global order.

    Epoch e is a permutation derived from (seed, e); position p of the order is image p mod N of epoch p // N. Step t
    takes positions t*batch .. (t+1)*batch, of which this rank takes its contiguous share, in `accumulate` micro-batches.
    So the order survives a resume and a change of the number of processes: nothing is lost, nothing repeated.

    Raises:
        UsageError: the batch does not divide over the processes and micro-batches.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        *,
        start: int,
        stop: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch % (world * accumulate):
            raise UsageError(
                f"--batch-size {batch} does not divide over {world} processes and --accumulate {accumulate}; choose a "
                f"multiple of {world * accumulate}."
            )
        self.images, self.batch, self.start, self.stop = images, batch, start, stop
        self.seed, self.rank, self.share, self.micro = seed, rank, batch // world, batch // world // accumulate
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.share // self.micro)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start, self.stop):
            first = step * self.batch + self.rank * self.share
            for begin in range(first, first + self.share, self.micro):
                yield [self._key(position) for position in range(begin, begin + self.micro)]

    def _key(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self.images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng(derived_seed(self.seed, 0, epoch)).permutation(self.images)
        return SampleKey(epoch, int(self._order[offset]))


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced: what pictures and quick validations look at."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
