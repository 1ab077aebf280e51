"""Image files on the disk as a source: the ImageFolder layout split/CLASS/*.jpg, and simpler ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from refocus_ext.errors import UsageError
from refocus_ext.images.checks import SMALL_DATA_SET
from refocus_ext.images.order import spread
from refocus_ext.images.sources.files import (
    BESIDE,
    EXTENSIONS,
    TWICE,
    Found,
    entries,
    find_pictures,
    in_words,
    left_out_kind,
    shown,
)
from refocus_ext.images.sources.interface import ImageSource, identity_of

ONLY_CLASS = "images"  # the name of the class of images without class folders


class NoValidation(UsageError):
    """Data without images of its own for validation."""


@dataclass(frozen=True)
class ImageList(ImageSource):
    """Files with labels; see `ImageSource`. `classes[label]` is the folder, or the photograph of the demo.

    `root` is the folder that all paths begin with, if it is known; `remarks` are sentences for the user.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    square: bool = False
    root: str = field(default="", compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path of the image, as it can be printed."""
        return shown(self.paths[index])

    def key(self, index: int) -> str:
        """The path within `root`."""
        return self.paths[index][len(self.root) :] if self.root else self.paths[index]

    def label(self, index: int) -> int:
        return self.labels[index]

    def open(self, index: int) -> BinaryIO:
        return open(self.paths[index], "rb")

    def notes(self) -> tuple[str, ...]:
        return self.remarks

    def identity(self) -> dict[str, Any]:
        """From names relative to the common folder of all files, and the sizes of a sample of them."""
        folder = len(os.path.commonpath([os.path.dirname(path) for path in (min(self.paths), max(self.paths))]))
        names = ((path[folder:], label) for path, label in zip(self.paths, self.labels, strict=True))
        sample = spread(range(len(self)), SMALL_DATA_SET)
        return identity_of(self.classes, self.square, names, (os.path.getsize(self.paths[i]) for i in sample))


def image_folder(root: str, split: str) -> ImageList:
    """The images of one split, "train" or "val".

    `root/split/CLASS/*.jpg` as VAR expects ImageNet; images at any depth below CLASS belong to it. Where there are no class
    folders, `root/split/*.jpg`: one class, "images" (not the folder's name: the folder may be renamed). Where there is neither
    train/ nor val/, the training images are those of `root` itself, in the same two ways. Where images lie beside folders of
    images, what holds more of them counts: the folders, as classes, or all as one class; what was decided is told.

    Raises:
        NoValidation: there is no val/, but there are training images.
        UsageError: a folder is missing or empty, or a class has no images.
    """
    base = Path(root)
    if not base.is_dir():
        raise UsageError(f"{root} is not a folder; give a folder that holds train/CLASS/*.JPEG and val/CLASS/*.JPEG.")
    other = _split_folder(base, "train" if split == "val" else "val")
    if folder := _split_folder(base, split):
        contents = _Contents.of(folder)
        if (
            split == "val" and not contents.classes and other and _has_folders(other)
        ):  # as ImageNet's, when it is unpacked
            raise UsageError(
                f"{folder} has no class folders, which {other} has; images belong in {folder}/CLASS/*.JPEG."
            )
        return _in_split(folder, contents)
    whole = None if other else _Contents.of(base)
    if split == "val" and (other or (whole and whole.holds_pictures())):
        raise NoValidation(
            f"{root} has no val/ folder for validation (it holds {_inside(base)}); put images in val/CLASS/*.JPEG, or hold "
            "out a share of the training images."
        )
    if whole is None or not whole.holds_pictures():
        rest = in_words(whole.left_out()) if whole else ""
        others = f"; no pictures are {rest}" if rest else ""
        raise UsageError(
            f"{root} has no {split}/ folder (it holds {_inside(base)}{others}); images belong in {split}/CLASS/*.JPEG."
        )
    return _without_splits(whole, base)


def _inside(base: Path) -> str:
    names = [shown(entry.name) for entry in entries(str(base)) if not left_out_kind(entry)]
    return ", ".join(names[:5]) or "nothing"


def _split_folder(base: Path, split: str) -> Path | None:
    """`base/split`, or its only twin in other letter case."""
    if (base / split).is_dir():
        return base / split
    twins = [entry.path for entry in entries(str(base)) if entry.name.lower() == split and entry.is_dir()]
    return Path(twins[0]) if len(twins) == 1 else None


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not left_out_kind(entry) for entry in entries(str(folder)))


@dataclass(frozen=True)
class _Contents:
    """The images that lie in a folder itself, and those of each of its folders."""

    loose: Found
    classes: dict[str, Found]

    @classmethod
    def of(cls, folder: Path) -> _Contents:
        above = {os.path.realpath(path) for path in (folder, *folder.resolve().parents)}
        loose, classes = find_pictures(folder, deep=False), dict[str, Found]()
        for entry in entries(str(folder)):
            if left_out_kind(entry) or not entry.is_dir():
                continue
            if entry.is_symlink() and os.path.realpath(entry.path) in above:
                loose.left_out[TWICE] += 1
                continue
            classes[entry.name] = find_pictures(entry.path)
        return cls(loose, classes)

    def holds_pictures(self) -> bool:
        return bool(self.loose.pictures) or any(found.pictures for found in self.classes.values())

    def left_out(self) -> Counter[str]:
        return sum((found.left_out for found in self.classes.values()), Counter(self.loose.left_out))


def _in_split(folder: Path, contents: _Contents) -> ImageList:
    """The images of a split folder: in class folders, or all of one class."""
    empty = [name for name, found in contents.classes.items() if not found.pictures]
    if contents.loose.pictures and len(empty) == len(contents.classes):
        return _one_class([contents.loose], contents.left_out(), folder)
    if not contents.classes:
        raise UsageError(f"{folder} has no class folders; images belong in {folder}/CLASS/*.JPEG.")
    if empty:
        raise UsageError(
            f"the class folder {shown(str(folder / empty[0]))} holds no images ({', '.join(EXTENSIONS)}); fill it or "
            "remove it."
        )
    left_out = contents.left_out()
    if contents.loose.pictures:
        left_out[BESIDE] = len(contents.loose.pictures)
    return _in_classes(contents.classes, left_out, folder)


def _without_splits(contents: _Contents, base: Path) -> ImageList:
    """The images of a folder without train/ and val/: in class folders, or all of one class."""
    filled = {name: found for name, found in contents.classes.items() if found.pictures}
    loose, inside = len(contents.loose.pictures), sum(len(found.pictures) for found in filled.values())
    left_out = contents.left_out()
    if loose >= max(1, inside):
        images = _one_class([contents.loose, *filled.values()], left_out, base)
        more = f", also the {inside} in its folders, because {loose} lie beside them" if inside else ""
        how = f"all its images are one class{more}"
    else:
        if loose:
            left_out[BESIDE] = loose
        images = _in_classes(filled, left_out, base)
        how = f"its {len(filled)} folders are the classes" if len(filled) > 1 else "its folder is the only class"
    first = f"{base} has neither train/ nor val/: {how}"
    return replace(images, remarks=(first, *images.remarks))


def _in_classes(classes: dict[str, Found], left_out: Counter[str], folder: Path) -> ImageList:
    per_class = [_paths([found]) for found in classes.values()]
    return ImageList(
        paths=tuple(path for paths in per_class for path in paths),
        labels=tuple(label for label, paths in enumerate(per_class) for _ in paths),
        classes=tuple(shown(name) for name in classes),
        root=str(folder),
        remarks=_left_out_of(folder, left_out),
    )


def _one_class(found: Sequence[Found], left_out: Counter[str], folder: Path) -> ImageList:
    paths = tuple(_paths(found))
    return ImageList(paths, (0,) * len(paths), (ONLY_CLASS,), root=str(folder), remarks=_left_out_of(folder, left_out))


def _paths(found: Sequence[Found]) -> list[str]:
    """By folder, then by name, as os.walk would list them."""
    return [os.path.join(*picture) for picture in sorted(picture for some in found for picture in some.pictures)]


def _left_out_of(folder: Path, left_out: Counter[str]) -> tuple[str, ...]:
    words = in_words(left_out)
    return (f"left out of {shown(str(folder))}: {words}",) if words else ()
