"""The box on a picture: from two taps, from its text, and drawn for the user."""

from __future__ import annotations

from PIL import Image, ImageDraw

from refocus_ext.sampling.editing import Box
from refocus_ext.sampling.student import STRIDE

Cell = tuple[int, int]  # column, row of latent cells
SIDE = 512  # pixels of the drawn picture, about
BOX, LINES = (235, 64, 52), (255, 255, 255)


def cell_at(x: float, y: float, side: int, image_size: int) -> Cell:
    """The latent cell at a point of a picture drawn `side` pixels wide; points outside count as on its edge."""
    cells = image_size // STRIDE
    column, row = (min(cells - 1, max(0, int(value * cells / side))) for value in (x, y))
    return column, row


def box_of(one: Cell, other: Cell) -> str:
    """The smallest box of whole cells with both in it, as text in pixels."""
    (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(one, other, strict=True))
    return ",".join(str(STRIDE * value) for value in (x0, y0, x1 + 1, y1 + 1))


def middle_box(image_size: int) -> str:
    """The middle half of the image, as text in pixels; at least one cell."""
    cells = image_size // STRIDE
    first = cells // 4
    return box_of((first, first), (max(first, cells - first - 1),) * 2)


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture at a whole multiple of its size, about SIDE pixels."""
    factor = max(1, round(SIDE / picture.width))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def draw_box(picture: Image.Image, box: Box | None, corner: Cell | None = None) -> Image.Image:
    """The picture enlarged, with its latent cells, and the box or the first corner of the next one."""
    drawn = enlarged(picture)
    cells = picture.width // STRIDE
    step = drawn.width / cells
    layer = Image.new("RGBA", drawn.size)
    pen = ImageDraw.Draw(layer)
    for k in range(1, cells):
        place = round(k * step)
        pen.line([(place, 0), (place, drawn.height)], (*LINES, 140))
        pen.line([(0, place), (drawn.width, place)], (*LINES, 140))
    if corner is not None:
        box = Box(*corner, corner[0] + 1, corner[1] + 1)
    if box is not None:
        x0, y0, x1, y1 = (round(value * step) for value in box)
        pen.rectangle([x0, y0, x1 - 1, y1 - 1], (*BOX, 40 if corner is None else 110), (*BOX, 255), 3)
    return Image.alpha_composite(drawn.convert("RGBA"), layer).convert("RGB")
