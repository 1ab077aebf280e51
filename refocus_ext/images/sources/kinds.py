"""The kinds of image sources, and the choice of one for a command's data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from refocus_ext.errors import UsageError
from refocus_ext.images.sources.archives import holds_imagenet, holds_shards, imagenet_tars, webdataset
from refocus_ext.images.sources.folder import ImageList, NoValidation, image_folder
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.letters import LEVELS, is_letters, letters
from refocus_ext.images.sources.parquet import holds_parquet, parquet_images
from refocus_ext.images.sources.parts import Part, hold_out, numbered_as

# The photographs in scikit-image's wheel (no download), without drawings, charts and icons.
DEMO_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip


def demo_photographs() -> ImageList:
    """The demo's photographs, one class each.

    Raises:
        UsageError: scikit-image is missing, or has fewer of them than expected.
    """
    try:
        import skimage
    except ImportError:
        raise UsageError(
            "the demo photographs come with scikit-image, which is not installed; install it, or give a folder of images."
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in DEMO_PHOTOGRAPHS if (folder / name).is_file()]
    if len(paths) < len(DEMO_PHOTOGRAPHS) // 2:
        raise UsageError(f"this scikit-image ships only {len(paths)} of the demo photographs; give a folder of images.")
    classes = tuple(path.stem for path in paths)
    return ImageList(tuple(map(str, paths)), tuple(range(len(paths))), classes, square=True)


def folder_or_hint(data: str, split: str) -> ImageSource:
    """`image_folder`; a misspelt word for drawn pictures is no folder that is missing.

    Raises:
        UsageError: as `image_folder`.
    """
    close = difflib.get_close_matches(data, LEVELS, n=1, cutoff=0.75)
    if close and not Path(data).exists():
        raise UsageError(f"there is no folder {data}; did you mean {close[0]}, which is drawn?")
    return image_folder(data, split)


class Kind(NamedTuple):
    """A kind of source: how to recognize it in a command's data, and how to open a split ("train" or "val")."""

    matches: Callable[[str], bool]
    open: Callable[[str, str], ImageSource]


# The first match is used. Add a new kind before the folder, which matches every word.
KINDS = (
    Kind(lambda data: not data, lambda data, split: demo_photographs()),
    Kind(is_letters, letters),
    Kind(holds_imagenet, imagenet_tars),
    Kind(holds_shards, webdataset),
    Kind(holds_parquet, parquet_images),
    Kind(lambda data: True, folder_or_hint),
)


def find_split(data: str, split: str, val_share: float = 0.0) -> ImageSource:
    """The images of one split, "train" or "val".

    Args:
        data: the user's --data; "" for the demo photographs, which have no splits: both are all of them.
        val_share: share of the training images that is held out for validation where the data has no images of its own for
            it; 0 holds none out.

    Raises:
        UsageError: they are missing.
    """
    if split == "val":
        try:
            return _open(data, "val")
        except NoValidation:
            if not val_share:
                raise
            return _divided(data, val_share)[1]
    return _divided(data, val_share)[0] if val_share else _open(data, split)


def find_images(data: str, val_share: float = 0.0) -> tuple[ImageSource, ImageSource]:
    """Training and validation images; the demo validates on centre crops of its photographs.

    A class has the number that training gives it, whether or not validation has all classes. `val_share` as of `find_split`.

    Raises:
        UsageError: they are missing, or validation has a class that training has not.
    """
    train, val = _divided(data, val_share)
    try:
        return train, numbered_as(val, train.classes)
    except UsageError as error:
        raise UsageError(f"{data}: {error}") from None


def split_name(data: str, split: str, images: ImageSource) -> str:
    """What a message calls the images of a split that `find_split` found."""
    if not data:
        return "the demo photographs"
    if isinstance(images, Part):
        return f"{data} ({images.what})"
    whole = isinstance(images, ImageList) and images.root == str(Path(data))
    return data if whole else f"{data}/{split}"


def _divided(data: str, val_share: float) -> tuple[ImageSource, ImageSource]:
    """Training and validation images, with a share of the former as the latter where the data has none of its own."""
    train = _open(data, "train")
    try:
        return train, _open(data, "val")
    except NoValidation:
        if not val_share:
            raise
        return hold_out(train, val_share)


def _open(data: str, split: str) -> ImageSource:
    return next(kind.open(data, split) for kind in KINDS if kind.matches(data))
