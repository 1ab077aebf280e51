"""Views of a source: a part of its images, a held-out share, and the classes numbered as in another source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from refocus_ext.errors import UsageError
from refocus_ext.images.sources.interface import ImageSource

LEAST = 2  # images held out, if so many can be


@dataclass(frozen=True)
class View(ImageSource):
    """All images of another source as they are; subclasses change which ones, or their labels."""

    inner: ImageSource

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.classes

    @property
    def square(self) -> bool:  # type: ignore[override]
        return self.inner.square

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def key(self, index: int) -> str:
        return self.inner.key(index)

    def label(self, index: int) -> int:
        return self.inner.label(index)

    @property
    def drawn(self) -> bool:  # type: ignore[override]
        return self.inner.drawn

    def open(self, index: int) -> BinaryIO:
        return self.inner.open(index)

    def draw(self, index: int, size: int, seed: int, epoch: int) -> Image.Image:
        return self.inner.draw(index, size, seed, epoch)

    def notes(self) -> tuple[str, ...]:
        return self.inner.notes()

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()


@dataclass(frozen=True)
class Part(View):
    """Some images of a source, in its order and with all its classes. `what` says which, for the identity."""

    indices: tuple[int, ...]
    what: str
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return super().name(self.indices[index])

    def key(self, index: int) -> str:
        return super().key(self.indices[index])

    def label(self, index: int) -> int:
        return super().label(self.indices[index])

    def open(self, index: int) -> BinaryIO:
        return super().open(self.indices[index])

    def draw(self, index: int, size: int, seed: int, epoch: int) -> Image.Image:
        return super().draw(self.indices[index], size, seed, epoch)

    def notes(self) -> tuple[str, ...]:
        return (*super().notes(), *self.remarks)

    def identity(self) -> dict[str, Any]:
        whole = super().identity()
        return whole | {"images": len(self), "of": whole["images"], "part": self.what}


@dataclass(frozen=True)
class Renumbered(View):
    """The same images under other labels: `numbers` has the label in `names` of each of the source's own classes."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.names

    def label(self, index: int) -> int:
        return self.numbers[super().label(index)]

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        return super().identity() | {"classes": len(self.names), "numbering": digest}


def numbered_as(images: ImageSource, classes: Sequence[str]) -> ImageSource:
    """The images with the labels that `classes` give to the names of their classes.

    Raises:
        UsageError: a class of the images is not one of `classes`.
    """
    if tuple(classes) == images.classes:
        return images
    number = {name: label for label, name in enumerate(classes)}
    if missing := sorted(set(images.classes) - set(number)):
        alike = [name for name in classes if name.lower() == missing[0].lower()]
        hint = f" (but {alike[0]}, in other letter case)" if alike else ""
        raise UsageError(f"val/ has the class {missing[0]}, which train/ does not have{hint}; the two must agree.")
    return Renumbered(images, tuple(classes), tuple(number[name] for name in images.classes))


class Divided(NamedTuple):
    """A source in two."""

    train: Part
    val: Part


def hold_out(images: ImageSource, share: float) -> Divided:
    """Divides the images by a hash of their names: a share is for validation, the others are for training.

    An image keeps its side when images are added, when the data set moves, and in every command. At least LEAST images are
    held out, but never the last one of a class.

    Raises:
        UsageError: no image can be held out, because each is the only one of its class.
    """
    ranks = [_rank(images.key(index)) for index in range(len(images))]
    by_rank = sorted(range(len(images)), key=ranks.__getitem__)
    left, held = [0] * len(images.classes), set[int]()
    for index in by_rank:
        left[images.label(index)] += 1
    for index in by_rank:
        if ranks[index] >= share and len(held) >= LEAST:
            break
        if left[images.label(index)] > 1:
            left[images.label(index)] -= 1
            held.add(index)
    if not held:
        raise UsageError(
            "no image can be held out for validation, because each is the only one of its class; give more images, or a val/ "
            "folder."
        )
    order = range(len(images))
    which = f" ({_digest(images, held)})" if images.names_parts else ""
    note = (
        f"no val/: {len(held)} of {len(images)} images, chosen by their names, are held out for validation and never "
        f"trained on (share {share:g})"
    )
    train = Part(images, tuple(i for i in order if i not in held), f"all but a share of {share:g}{which}", (note,))
    return Divided(train, Part(images, tuple(i for i in order if i in held), f"a share of {share:g}{which}", (note,)))


def _digest(images: ImageSource, held: set[int]) -> str:
    """Of the keys of the images that are held out."""
    keys = "\n".join(images.key(index) for index in sorted(held))
    return hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _rank(key: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
