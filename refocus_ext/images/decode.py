"""The one place that decides what an image file is and how it becomes RGB.

Training, cache, evaluation, editing and figures all read pictures here. An 8-bit RGB or grey JPEG or PNG without an EXIF
rotation gives the pixels that Pillow gives. Everything else ends as what a viewer shows (`pixels.to_rgb`, upright), or as a
`BrokenImage` whose message is the end of a sentence that begins with the file's name.

No file takes a gigabyte of memory: larger pictures are refused by their header, but for JPEGs, which above DRAFT_ABOVE
pixels are decoded at a half, a quarter or an eighth of their size where that is still twice what is needed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from refocus_ext.images.pixels import SHOWN_AS_STORED, WHITE, Colour, is_deep, is_transparent, to_rgb

# Pillow finds the format by the contents, whatever the name says; these are pictures, read by no other program (as EPS is).
Image.init()
FORMATS = tuple(
    name
    for name in "JPEG PNG WEBP AVIF GIF TIFF BMP DIB PPM JPEG2000 TGA QOI ICO PSD PCX SGI DDS IM SUN".split()
    if name in Image.OPEN
)
MEGA = 10**6
DRAFT_ABOVE = 50 * MEGA  # pixels; JPEGs up to here are always decoded whole, so that their bits never change
MOST_PIXELS = 89 * MEGA  # about 8 bytes each while decoding; Pillow itself warns from here on
MOST_IN_FORMAT = {"WEBP": 50 * MEGA, "AVIF": 50 * MEGA, "JPEG2000": 40 * MEGA}  # 14 to 20 bytes each
MOST_IN_JPEG = 1000 * MEGA  # decoded at an eighth; not progressive ones, whose coefficients are all held in memory
LONGEST_KEPT = 20  # sides longer than this many times the other are cut to the middle before the picture is resized
LONGEST_READ = 200  # and refused from here on
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The limits above take the place of Pillow's, and a file that it only warns of is shown as well as it can be.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BrokenImage(Exception):
    """A file that cannot or must not be decoded; the message is what follows its name: "is not an image that ..."."""


class Header(NamedTuple):
    """A picture by its header: size upright, in pixels; `plain` if its pixels are those that are stored."""

    width: int
    height: int
    plain: bool


def read_header(file: BinaryIO, shorter: int | None = None) -> Header:
    """The header of a picture that could be decoded.

    Args:
        shorter: the side in pixels to which `load_resized` would bring it; None for the whole picture.

    Raises:
        BrokenImage: it is no picture, or too large or too long to be decoded.
    """
    with _reading():
        image = _open(file)
        _check_size(image, shorter)
        turned = _orientation_in_header(image, file)
        width, height = image.size[::-1] if turned >= 5 else image.size
        shown_as_stored = image.mode in SHOWN_AS_STORED and not is_transparent(image) and not is_deep(image)
        resized_as_ever = image.width * image.height <= DRAFT_ABOVE and _length(image) <= LONGEST_KEPT
        return Header(width, height, turned == 1 and shown_as_stored and resized_as_ever)


def decode(file: BinaryIO, shorter: int | None = None, background: Colour = WHITE) -> Image.Image:
    """The picture upright, as RGB. Of an animation the first frame.

    Args:
        shorter: the side in pixels to which it will be resized: a huge JPEG may then be decoded smaller, at least twice that
            size. None decodes all pixels.
        background: what transparent parts show.

    Raises:
        BrokenImage: it cannot or must not be decoded.
    """
    with _reading():
        image = _open(file)
        _check_size(image, shorter)
        if shorter is not None and isinstance(image, JpegImagePlugin.JpegImageFile) and _pixels(image) > DRAFT_ABOVE:
            image.draft(None, (2 * shorter, 2 * shorter))
        rgb = to_rgb(image, background)
        turn = UPRIGHT.get(_orientation(image))
        del image  # its pixels would stay in memory beside the turned ones
        return rgb if turn is None else rgb.transpose(turn)


def load_resized(file: BinaryIO, shorter: int, square: bool = False, background: Colour = WHITE) -> Image.Image:
    """RGB image whose shorter side is `shorter` pixels (Lanczos, as VAR; the longer side rounded down, as torchvision does), or of
    its central square.

    Raises:
        BrokenImage: it cannot or must not be decoded.
    """
    image = decode(file, shorter, background)
    image = central(image, 1 if square else LONGEST_KEPT)
    short = min(image.size)
    width, height = (shorter * side // short for side in image.size)
    with _reading():
        return image.resize((width, height), Image.Resampling.LANCZOS)


def central(image: Image.Image, longest: int) -> Image.Image:
    """The middle of the picture, its longer side at most `longest` times the shorter."""
    most = longest * min(image.size)
    width, height = min(image.width, most), min(image.height, most)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever Pillow raises on a file into `BrokenImage`."""
    try:
        yield
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("is not an image that can be opened") from error
    except Image.DecompressionBombError as error:
        raise BrokenImage("has more pixels than can be decoded safely") from error
    except MemoryError as error:
        raise BrokenImage("takes more memory than there is") from error
    except (
        Exception
    ) as error:  # its parsers raise struct.error, KeyError, RecursionError, ... on what they do not expect
        words = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise BrokenImage(f"cannot be decoded ({words})") from error


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """As Image.open, for JPEGs above Pillow's limit too: `_check_size` decides about them."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        file.seek(0)
        if file.read(3) != b"\xff\xd8\xff":
            raise
        file.seek(0)
        return JpegImagePlugin.jpeg_factory(file)


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _length(image: Image.Image) -> float:
    return max(image.size) / max(1, min(image.size))


def _check_size(image: Image.Image, shorter: int | None) -> None:
    size = f"{image.width}x{image.height} pixels"
    if shorter is not None and _length(image) > LONGEST_READ:
        raise BrokenImage(f"is {size}, more than {LONGEST_READ} times longer than wide; cut it")
    format = image.format or ""
    scaled = format in ("JPEG", "MPO") and shorter is not None and not image.info.get("progressive")
    limit = MOST_IN_JPEG if scaled else MOST_IN_FORMAT.get(format, MOST_PIXELS)
    if _pixels(image) > limit:
        kind = f"a {format} file of this kind" if format else "such a file"
        raise BrokenImage(f"has {size}, more than the {limit // MEGA} megapixels that {kind} may have; make it smaller")


# ------------------------------------------------------------------------------------------------ orientation


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. A broken EXIF block counts as none, as in a viewer. Pillow itself turns TIFFs."""
    if image.format == "TIFF":
        return 1
    with contextlib.suppress(Exception):  # as many kinds as there are ways to break EXIF
        value = image.getexif().get(ORIENTATION)
        return value if value in UPRIGHT else 1
    return 1


def _orientation_in_header(image: Image.Image, file: BinaryIO) -> int:
    """As `_orientation`, but without decoding a PNG only to see whether EXIF follows its pixels."""
    told = any(name in image.info for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))
    if image.format == "PNG" and not told and not _exif_after_pixels(file):
        return 1
    return _orientation(image)


def _exif_after_pixels(file: BinaryIO) -> bool:
    """Whether a chunk that can hold EXIF follows the pixels of this PNG; only the chunks' heads are read."""
    here, found, pixels = file.tell(), False, False
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND" and not found:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        pixels = pixels or kind == b"IDAT"
        text = file.read(min(size, 24)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        found = pixels and (kind == b"eXIf" or text.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")))
        file.seek(size - len(text) + 4, 1)
    file.seek(here)
    return found
