"""Test charts that show aliasing. They tile seamlessly, so that their DFT is exact without a window.

Periods and letters have fixed sizes in pixels, because decimation acts on pixels; a larger chart has
more of them. The zone plate and the drawn edges scale with the chart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from refocus_ext.optics.names import CHARTS

SMALLEST = 64
SUPERSAMPLES = 8  # samples per pixel and axis for drawn edges, averaged so that the chart itself has no jaggies
GRATING_PERIODS = (2.5, 3.5, 6.0, 11.0)  # pixels: above and below the new Nyquist of every state of the paper
GRATING_ANGLES = (0.0, 22.5, 45.0, 90.0)  # degrees
THREAD = 3.5  # pixels per thread of the weave
PARAGRAPH = (
    "Small print: moire, jaggies and broken strokes are what decimation without a lens makes of letters. "
    "The quick brown fox jumps over the lazy dog; 0123456789 and Il1 O0 rn m cl d."
)


def chart(name: str, size: int = 256, dtype: torch.dtype = torch.float32) -> Tensor:
    """A chart of `names.CHARTS` as (1, 3, size, size) in [-1, 1].

    Raises:
        ValueError: an unknown name, or a size that is odd or below 64 pixels.

    >>> chart("zone-plate").shape
    torch.Size([1, 3, 256, 256])
    """
    if name not in CHARTS:
        raise ValueError(f"there is no chart {name!r}; choose one of {', '.join(CHARTS)}")
    if size < SMALLEST or size % 2:
        raise ValueError(f"a chart needs an even size of at least {SMALLEST} pixels, got {size}")
    x = _DRAWERS[name](size)
    return x.expand(1, 3, size, size).to(dtype).contiguous()


def zone_plate(size: int) -> Tensor:
    """cos(pi r^2 / size), (size, size): r / size cycles/pixel at r pixels from the centre, Nyquist at the borders' middle."""
    r = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.cos(math.pi * (r[:, None] ** 2 + r[None, :] ** 2) / size)


def gratings(size: int) -> Tensor:
    """Round patches of sinusoids, (size, size): one column per period, one row per orientation."""
    side = size // len(GRATING_PERIODS)
    t = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    # A soft rim: a hard edge would add frequencies.
    edge = ((side / 2 - torch.hypot(t[:, None], t[None, :])) / (side / 4)).clamp(0, 1)
    rim = 0.5 - 0.5 * torch.cos(math.pi * edge)
    canvas = torch.zeros(size, size, dtype=torch.float64)
    for row, angle in enumerate(GRATING_ANGLES):
        along = t[None, :] * math.cos(math.radians(angle)) + t[:, None] * math.sin(math.radians(angle))
        for column, period in enumerate(GRATING_PERIODS):
            patch = torch.cos(2 * math.pi * along / period) * rim
            canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return canvas


def slanted_edges(size: int) -> Tensor:
    """Squares turned by a few degrees, a fan of thin lines and a railing, (size, size): they show staircases."""
    unit = size * SUPERSAMPLES / 256
    canvas = Image.new("L", (size * SUPERSAMPLES,) * 2, 200)
    draw = ImageDraw.Draw(canvas)
    for centre, angle, ink in (((68, 68), 5, 20), ((188, 68), 12, 90), ((68, 188), 38, 20)):
        draw.polygon(_turned_square(centre, 38, angle, unit), fill=ink)
    for degrees in range(0, 91, 6):
        end = [188 - 46 + 92 * math.cos(math.radians(degrees)), 188 - 46 + 92 * math.sin(math.radians(degrees))]
        draw.line([142 * unit, 142 * unit, end[0] * unit, end[1] * unit], fill=10, width=max(1, round(1.2 * unit)))
    for bar in range(40):  # 5 px apart and slightly tilted
        draw.line([(28 + 5 * bar) * unit, 8 * unit, (31 + 5 * bar) * unit, 22 * unit], fill=30, width=round(2 * unit))
    return _recorded(canvas, size)


def _turned_square(
    centre: tuple[float, float], half: float, degrees: float, unit: float
) -> Sequence[tuple[float, float]]:
    corners = [math.radians(degrees + 45 + 90 * quarter) for quarter in range(4)]
    reach = half * math.sqrt(2)
    return [((centre[0] + reach * math.cos(a)) * unit, (centre[1] + reach * math.sin(a)) * unit) for a in corners]


def _recorded(canvas: Image.Image, size: int) -> Tensor:
    """Grey drawing at SUPERSAMPLES pixels per pixel -> (size, size) in [-1, 1], averaged over each pixel."""
    fine = torch.from_numpy(np.array(canvas, dtype=np.float64)) / 127.5 - 1
    return fine.unflatten(0, (size, SUPERSAMPLES)).unflatten(2, (size, SUPERSAMPLES)).mean(dim=(1, 3))


def fine_text(size: int) -> Tensor:
    """A page of print from 22 down to 7 pixels, dark on light, (size, size), in Pillow's default font."""
    canvas = Image.new("L", (size, size), 250)
    draw, words = ImageDraw.Draw(canvas), itertools.cycle(PARAGRAPH.split())
    margin = top = max(4, size // 32)
    word = next(words)
    for points in _type_sizes(size):
        font = ImageFont.load_default(points)
        if top + 1.25 * points > size - margin:
            break
        line = ""
        while draw.textlength(line + word, font=font) <= size - 2 * margin:
            line, word = f"{line}{word} ", next(words)
        draw.text((margin, top), line or word, fill=15, font=font)
        top += round(1.25 * points)
    return torch.from_numpy(np.array(canvas, dtype=np.float64)) / 127.5 - 1


def _type_sizes(size: int) -> Iterator[int]:
    """The height of each line in pixels: one headline, then twice each smaller size, then the smallest to the end."""
    yield from (points for points in (22, 16, 16, 12, 12, 10, 10, 9, 9, 8, 8) if points <= size / 8)
    yield from itertools.repeat(7)


def weave(size: int) -> Tensor:
    """Plain-woven cloth in gentle folds, (3, size, size): warp and weft of two colours, THREAD pixels each."""
    # An even number of threads tiles; the checkerboard of over and under has half their frequency.
    threads = 2 * round(size / THREAD / 2)
    t = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    y, x = t[:, None], t[None, :]
    folds = 1.5 * torch.sin(2 * y) * torch.cos(x), 1.5 * torch.sin(x + y)
    u, v = threads * x + folds[0], threads * y + folds[1]
    over = torch.cos(u / 2) * torch.cos(v / 2)
    thread_u, thread_v = (0.5 + 0.5 * torch.cos(phase) for phase in (u, v))
    light = 0.85 + 0.15 * torch.sin(x - 2 * y)
    warp, weft = torch.tensor([1.0, 0.95, 0.85]).double(), torch.tensor([0.5, 0.65, 1.0]).double()
    share = (0.5 + 0.5 * over)[None]
    cloth = share * thread_u * warp[:, None, None] + (1 - share) * thread_v * weft[:, None, None]
    return 2 * cloth * light - 1


_DRAWERS: dict[str, Callable[[int], Tensor]] = {
    "zone-plate": zone_plate,
    "gratings": gratings,
    "edges": slanted_edges,
    "text": fine_text,
    "weave": weave,
}
