"""The interface of every source of images, used by training, the token cache and the figures."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, BinaryIO

from PIL import Image


class ImageSource(ABC):
    """Images with labels in a fixed order.

    To add a kind of source, derive from this class and register it in `sources.KINDS`. An object is copied to the loader
    processes, so it must be picklable and small: it holds names, not pixels or open files.

    `classes[label]` is the name of a class. `square` images are cut to their central square before they are resized.
    A `drawn` source has no files: training draws its images at their size, by `draw`. If a source `names_parts`, the identity of
    a part has a digest of its images: their keys once depended on the folder's path.
    """

    classes: tuple[str, ...]
    square: bool
    drawn: bool = False
    names_parts: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image in messages: a path, or something like archive.tar/member."""

    def key(self, index: int) -> str:
        """A name of an image that does not change when the data set moves; by default `name`."""
        return self.name(index)

    def notes(self) -> tuple[str, ...]:
        """Sentences about the whole for the user: what was left out of it, how it was divided."""
        return ()

    @abstractmethod
    def label(self, index: int) -> int: ...

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """An image as a binary file (JPEG, PNG, ...) that the caller closes.

        Raises:
            OSError: it cannot be read.
        """

    def draw(self, index: int, size: int, seed: int, epoch: int) -> Image.Image:
        """An image of a drawn source, RGB, size x size pixels; it depends on the arguments only."""
        raise NotImplementedError(f"{type(self).__name__} has files")

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a token cache compares to detect other images, as JSON-serializable values; made by `identity_of`.

        The location of the images is not part of it: a data set may move.
        """


def identity_of(
    classes: tuple[str, ...], square: bool, names: Iterable[tuple[str, int]], sizes: Iterable[int]
) -> dict[str, Any]:
    """Counts, and a digest of all arguments.

    Args:
        names: name and label of every image in its order; a name must not change when the data set moves.
        sizes: bytes of some of the images; a sample of them is enough to notice that one was exchanged.
    """
    digest = hashlib.sha256(json.dumps([classes, square]).encode())
    images = 0
    for name, label in names:
        digest.update(f"{name}\n{label}\n".encode("utf-8", "surrogateescape"))
        images += 1
    for size in sizes:
        digest.update(f"{size}\n".encode())
    return {"images": images, "classes": len(classes), "digest": digest.hexdigest()}


def classes_in_words(images: ImageSource) -> str:
    """'1 class', '10 classes'."""
    return f"{len(images.classes)} class{'es' * (len(images.classes) != 1)}"
