"""The fonts of drawn letters: the text fonts inside matplotlib's wheel, or a folder of fonts."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from PIL import ImageFont

from refocus_ext.errors import UsageError

# All fonts of matplotlib that have the Latin letters upright and alike in shape, by family. Tokenizers and students never
# train on those in UNSEEN; the classifiers that read letters do.
SEEN = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic",
    "cmss10", "cmtt10",
)  # fmt: skip
UNSEEN = ("cmr10", "cmb10", "cmmi10", "cmti10")
SUFFIXES = (".ttf", ".otf")


def matplotlib_fonts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of fonts inside matplotlib.

    Raises:
        UsageError: matplotlib, or one of the fonts, is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "the letters are set in matplotlib's fonts, but matplotlib is not installed; install it, or give a folder of fonts "
            "(letters:DIR)."
        ) from None
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{name}.ttf" for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UsageError(
            f"this matplotlib has no font {missing[0]}; install another version, or give a folder of fonts (letters:DIR)."
        )
    return tuple(map(str, paths))


def fonts_of_folder(folder: str) -> tuple[str, ...]:
    """Paths of all fonts in a folder, sorted.

    Raises:
        UsageError: there is no such folder, it has no font, or one of them cannot be read.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is no folder; give one with fonts ({', '.join(SUFFIXES)}).")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"{folder} has no fonts ({', '.join(SUFFIXES)}); give a folder with some.")
    for path in paths:
        try:
            ImageFont.truetype(str(path), 16)
        except OSError as error:
            raise UsageError(f"{path} cannot be read as a font ({error}); remove it, or give another folder.") from None
    return tuple(map(str, paths))


@functools.lru_cache(maxsize=512)
def font(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    """A font at a size. The layout engine is fixed, so that pictures do not depend on whether raqm is installed."""
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=64)
def digest(path: str) -> str:
    """sha256 of a font's file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
