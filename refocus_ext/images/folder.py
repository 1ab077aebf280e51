"""Image files on the disk as a source, and the ImageFolder layout: split/CLASS/*.jpg."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from refocus_ext.errors import UsageError
from refocus_ext.images.checks import SMALL_DATA_SET
from refocus_ext.images.order import spread
from refocus_ext.images.source import ImageSource, identity_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")


@dataclass(frozen=True)
class ImageList(ImageSource):
    """Files with labels; see `ImageSource`. `classes[label]` is the folder, or the photograph of the demo."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    square: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path of the image."""
        return self.paths[index]

    def label(self, index: int) -> int:
        return self.labels[index]

    def open(self, index: int) -> BinaryIO:
        return open(self.paths[index], "rb")

    def identity(self) -> dict[str, Any]:
        """From names relative to the common folder of all files, and the sizes of a sample of them."""
        folder = len(os.path.commonpath([os.path.dirname(path) for path in (min(self.paths), max(self.paths))]))
        names = ((path[folder:], label) for path, label in zip(self.paths, self.labels, strict=True))
        sample = spread(range(len(self)), SMALL_DATA_SET)
        return identity_of(self.classes, self.square, names, (os.path.getsize(self.paths[i]) for i in sample))


def image_folder(root: str, split: str) -> ImageList:
    """`root/split/CLASS/*.jpg` as VAR expects ImageNet.

    Raises:
        UsageError: a folder is missing or empty, or a class has no images.
    """
    base = Path(root)
    if not base.is_dir():
        raise UsageError(f"{root} is not a folder; give a folder that holds train/CLASS/*.JPEG and val/CLASS/*.JPEG.")
    folder = base / split
    if not folder.is_dir():
        inside = ", ".join(sorted(entry.name for entry in os.scandir(base))[:5]) or "nothing"
        raise UsageError(f"{root} has no {split}/ folder (it holds {inside}); images belong in {split}/CLASS/*.JPEG.")
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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    found = (Path(root) / name for root, _, names in sorted(os.walk(folder)) for name in sorted(names))
    return [str(path) for path in found if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]
