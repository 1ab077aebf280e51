"""Any picture that Pillow opens as 8-bit RGB, as a viewer shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
SHOWN_AS_STORED = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")  # where nothing is transparent
DEEP = ("I", "F")  # and every mode that begins with "I;": more than 8 bits in one channel
BAND = 1 << 20  # pixels converted at once: a whole picture of 90 megapixels in float64 would take 700 MB
MIN_IS_WHITE, PHOTOMETRIC, BITS_PER_SAMPLE = 0, 262, 258  # of TIFF


def is_transparent(image: Image.Image) -> bool:
    """Whether some of its pixels may be transparent: an alpha channel, or a transparent colour or palette entry."""
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or palette.endswith("A")


def is_deep(image: Image.Image) -> bool:
    """Whether its one channel has more than 8 bits."""
    return image.mode in DEEP or image.mode.startswith("I;")


def to_rgb(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """The picture as RGB: wide ranges scaled to 8 bits, and what is transparent laid over `background`.

    16-bit grey is divided by 257 (12-bit by its own maximum). 32-bit integers are taken as 8-bit or 16-bit grey where they
    fit, and otherwise scaled from their minimum and maximum; so are floats, unless they lie in [0, 1], which is black to
    white. Embedded colour profiles are not applied, as VAR and torchvision do not.
    """
    _repair_transparency(image)
    image.load()
    if is_deep(image):
        return _deep(image, background)
    if is_transparent(image):
        return _over(image, background)
    return image if image.mode == "RGB" else image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in pieces of some rows, and the first row of each."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(image.height, top + rows)))
        band.info = dict(image.info)
        yield top, band


# ------------------------------------------------------------------------------------------------ transparency


def _over(image: Image.Image, background: Colour) -> Image.Image:
    shown = Image.new("RGB", image.size, background)
    for top, band in _bands(image):
        ground = Image.new("RGBA", band.size, (*background, 255))
        shown.paste(Image.alpha_composite(ground, _rgba(band)).convert("RGB"), (0, top))
    return shown


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _repair_transparency(image: Image.Image) -> None:
    """The transparent colour of a PNG is told in the file's own depth, but Pillow's pixels have 8 bits. Before loading."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    stored = tiles[0][3] if image.format == "PNG" and tiles else ""
    if stored == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    if stored in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if stored == "L;2" else 17)


# ------------------------------------------------------------------------------------------------ wide ranges


def _deep(image: Image.Image, background: Colour) -> Image.Image:
    eight_bits, transparent = _scaling(image), image.info.get("transparency")
    shown = Image.new("RGB", image.size)
    for top, band in _bands(image):
        values = np.asarray(band)
        grey = Image.fromarray(np.rint(np.clip(eight_bits(values.astype(np.float64)), 0, 255)).astype(np.uint8))
        colours = grey.convert("RGB")
        if isinstance(transparent, int):
            colours.paste(background, mask=Image.fromarray((values == transparent).astype(np.uint8) * 255))
        shown.paste(colours, (0, top))
    return shown


def _scaling(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """The function from values to [0, 255], not yet rounded."""
    low, high = _range(image)
    if _tiff(image, PHOTOMETRIC) == MIN_IS_WHITE:
        low, high = high, low
    return lambda values: np.nan_to_num((values - low) * 255 / ((high - low) or 1), nan=0)


def _range(image: Image.Image) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode.startswith("I;"):
        bits = _tiff(image, BITS_PER_SAMPLE)
        return 0, 4095 if bits in (12, (12,)) else 65535
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0, 65535
    low, high = _extremes(image)
    limits = (1,) if image.mode == "F" else (255, 65535)
    return next(((0, limit) for limit in limits if low >= 0 and high <= limit), (low, high))


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        values = np.asarray(band)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0, 1)


def _tiff(image: Image.Image, tag: int) -> object:
    """A tag of a TIFF; None for other pictures."""
    return image.tag_v2.get(tag) if hasattr(image, "tag_v2") else None
