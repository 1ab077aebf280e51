"""Photographs from anywhere: folders at any depth and single files, for commands that need pictures but no classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.images.crops import to_tensor
from refocus_ext.images.decode import BrokenImage, load_resized
from refocus_ext.images.order import spread
from refocus_ext.images.sources.files import EXTENSIONS, find_pictures, shown
from refocus_ext.images.sources.folder import ImageList


def find_photographs(words: Sequence[str], at_most: int | None = None) -> ImageList:
    """The images in these folders (recursively, sorted) and files, all in one class.

    Raises:
        UsageError: a word is neither, or a folder has no images.
    """
    paths = [path for word in words for path in _images_of(Path(word))]
    chosen = [paths[i] for i in spread(range(len(paths)), at_most or len(paths))]
    return ImageList(tuple(chosen), (0,) * len(chosen), ("photographs",))


def _images_of(word: Path) -> list[str]:
    if word.is_file():
        return [str(word)]
    if not word.is_dir():
        raise UsageError(f"{word} is neither a folder nor an image; give an existing one.")
    images = [str(path) for path in sorted(Path(*picture) for picture in find_pictures(word).pictures)]
    if not images:
        raise UsageError(f"{word} holds no images ({', '.join(EXTENSIONS)}); give a folder with images.")
    return images


def load_square(path: str, size: int) -> Tensor:
    """The central square of an image, resized to (3, size, size) (Lanczos), in [-1, 1].

    Raises:
        UsageError: it is not a readable image.
    """
    if Path(path).is_dir():
        raise UsageError(f"{path} is a folder; give the path of one photograph.")
    if not Path(path).is_file():
        raise UsageError(f"there is no image {path}; give the path of a photograph.")
    try:
        with open(path, "rb") as file:
            return read_square(file, size, path)
    except OSError as error:
        raise UsageError(f"{shown(str(path))} cannot be read ({error.strerror}); give another one.") from None


def read_square(file: BinaryIO, size: int, name: str) -> Tensor:
    """As `load_square`, of an open file that is called `name` in messages.

    Raises:
        UsageError: it is not a readable image.
    """
    try:
        return to_tensor(load_resized(file, size, square=True))
    except BrokenImage as error:
        raise UsageError(f"{shown(name)} {error}; give another one.") from None
