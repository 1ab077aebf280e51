"""Checks of images before work starts, and the number of broken images allowed later."""

from __future__ import annotations

from refocus_ext.errors import UsageError
from refocus_ext.images.decode import BrokenImage, Header, read_header
from refocus_ext.images.sources.interface import ImageSource

SMALL_DATA_SET = (
    5000  # up to this many images every header is read before training, beyond it an even sample of this many
)


class SmallImage(UsageError):
    """An image that is smaller than the crop, where small images are refused."""


def check_images(images: ImageSource, crop: int, small_images: str) -> str | None:
    """Reads the headers of the images (all of them up to SMALL_DATA_SET, otherwise an even sample of that many).

    Args:
        crop: pixels.
        small_images: "refuse", "upsample", or "auto", which refuses up to SMALL_DATA_SET images and upsamples beyond.

    Returns:
        A line for the user if small images will be upsampled.

    Raises:
        SmallImage: one is smaller than the crop, and small images are refused.
        UsageError: a file cannot or must not be decoded.
    """
    if images.drawn:
        return None
    checked = range(0, len(images), max(1, len(images) // SMALL_DATA_SET))
    refuse = small_images == "refuse" or (small_images == "auto" and len(images) <= SMALL_DATA_SET)
    small, unreadable = 0, []
    for index in checked:
        try:
            width, height, _ = header_of(images, index, crop)
        except UsageError as error:
            unreadable.append(str(error))
            continue
        if min(width, height) >= crop:
            continue
        if refuse:
            raise SmallImage(
                f"{images.name(index)} is {width}x{height} pixels, smaller than the {crop} pixel crop; remove it, choose a "
                "smaller image size, or allow upsampling of small images."
            )
        small += 1
    if unreadable:
        more = f" (and {len(unreadable) - 1} more of the {len(checked)} files checked)" if len(unreadable) > 1 else ""
        raise UsageError(f"{unreadable[0].removesuffix('.')}{more}.")
    if not small:
        return None
    return f"{small} of {len(checked)} images checked are smaller than {crop} px and are upsampled, as VAR does"


def header_of(images: ImageSource, index: int, shorter: int | None = None) -> Header:
    """The header of an image; `shorter` as of `decode.read_header`.

    Raises:
        UsageError: it cannot or must not be decoded.
    """
    try:
        with images.open(index) as file:
            return read_header(file, shorter)
    except BrokenImage as error:
        raise UsageError(f"{images.name(index)} {error}; remove it or replace it.") from None
    except OSError as error:
        raise UsageError(
            f"{images.name(index)} cannot be read ({error.strerror or error}); remove it or replace it."
        ) from None


def size_of(images: ImageSource, index: int) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from the header.

    Raises:
        UsageError: it is not an image.
    """
    return header_of(images, index)[:2]


def broken_limit(images: ImageSource) -> int:
    """The largest number of broken images with which a command continues."""
    return max(3, len(images) // 100)
