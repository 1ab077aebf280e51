"""Images: an ImageFolder or the demo photographs, their checks, and a data order that only (seed, step) decides."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from refocus_ext.errors import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
SMALL_DATA_SET = (
    5000  # up to here every image's header is read before training starts, beyond it an even sample of this many
)


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
