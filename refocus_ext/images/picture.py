"""Grids of captioned images, as runs draw them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from refocus_ext.errors import RunFailed
from refocus_ext.storage.atomic import written_beside

BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@functools.cache
def font_of(points: int, bold: bool = False) -> Any:
    """A font for captions: matplotlib's DejaVu, which has letters of most European languages; without it Pillow's own."""
    spec = importlib.util.find_spec("matplotlib")
    name = f"DejaVuSans{'-Bold' * bold}.ttf"
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / name
        if file.is_file():
            return ImageFont.truetype(str(file), points)
    return ImageFont.load_default(points)


def to_image(image_3HW: Tensor, side: int | None = None) -> Image.Image:
    """(3,H,W) in [-1,1] -> PIL; enlarged to `side` pixels without smoothing when that is a whole multiple."""
    values = _finite(image_3HW.detach().float().clamp(-1, 1).add(1).mul(127.5).round())
    array = values.byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(array)
    if side and side != picture.width:
        exact = side % picture.width == 0
        picture = picture.resize((side, side), Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC)
    return picture


def image_bytes(image_B3HW: Tensor) -> np.ndarray:
    """(B,3,H,W) in [0,1] -> (B,H,W,3) uint8, clamped and rounded to nearest, as in a PNG.

    Raises:
        RunFailed: a value is not finite.
    """
    values = _finite(image_B3HW.float().clamp(0, 1).mul(255).round())
    return values.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _finite(image: Tensor) -> Tensor:
    """The same, on the host."""
    image = image.cpu()
    if not image.isfinite().all():
        raise RunFailed(
            "an image has values that are not finite: the weights that made it are damaged, or need another precision."
        )
    return image


def grid(
    rows: Sequence[Sequence[Tensor]],
    headers: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    names: Sequence[str] = (),
    title: str = "",
    side: int = 128,
) -> Image.Image:
    """A table of images.

    Args:
        rows: images (3,H,W) in [-1,1], one list per row.
        headers: one line (or more, with newlines) above each column.
        captions: a short line under each image ("" for none).
        names: a label left of each row.
    """
    font, small = font_of(15), font_of(12)
    gap, foot = 6, 16 if captions else 0
    head = (26 if title else 0) + 18 * max(header.count("\n") + 1 for header in headers) + gap
    left = gap + (max(int(font.getlength(name)) for name in names) + 2 * gap if names else 0)
    width, height = left + len(headers) * (side + gap), head + len(rows) * (side + foot + gap)
    canvas = Image.new("RGB", (max(width, int(font.getlength(title)) + 2 * gap), height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 4), title, fill=INK, font=font)
    for column, header in enumerate(headers):
        draw.multiline_text((left + column * (side + gap), 26 if title else 4), header, fill=INK, font=small, spacing=3)
    for r, row in enumerate(rows):
        top = head + r * (side + foot + gap)
        if names:
            draw.text((gap, top + side // 2 - 8), names[r], fill=INK, font=font)
        for c, image in enumerate(row):
            canvas.paste(to_image(image, side), (left + c * (side + gap), top))
            if captions:
                draw.text((left + c * (side + gap), top + side + 1), captions[r][c], fill=FAINT, font=small)
    return canvas


def save_png(path: Path, picture: Image.Image) -> None:
    """Writes the PNG completely or not at all."""
    with written_beside(path) as beside:
        picture.save(beside, format="PNG")


def as_array(picture: Image.Image) -> np.ndarray:
    """(H,W,3) uint8."""
    return np.asarray(picture)
