"""Draws one picture of a letter or word: moved, turned, scaled, in two colours, on a plain or hatched ground.

Everything is drawn four times as large and reduced with Lanczos's filter, so that the picture itself has no aliasing.
Lengths are in pixels of the finished picture unless named otherwise; angles are in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from refocus_ext.images.letters.fonts import font

VERSION = 1  # part of the identity of the pictures: raise it with any change of what is drawn
OVERSAMPLING = 4
LARGEST_ANGLE = 10.0
LARGEST_SHIFT = 0.6  # of the free space on each side
# ground and ink, far apart in luminance
PALETTES = (
    ((248, 244, 232), (24, 26, 38)),
    ((250, 214, 78), (42, 42, 46)),
    ((24, 62, 112), (246, 238, 214)),
    ((176, 32, 44), (250, 244, 236)),
    ((30, 92, 66), (244, 226, 150)),
    ((214, 234, 248), (128, 24, 86)),
    ((60, 34, 88), (246, 186, 106)),
    ((238, 238, 238), (196, 58, 22)),
)
# Cycles per pixel of a hatched ground: above half of Nyquist, so that decimation by two without a filter folds it, unless it is
# near the diagonal, to frequencies where a finished picture has none of it.
HATCH = (0.28, 0.40)
OUTLINE = 1.3  # width of the lines of fine letters


@dataclass(frozen=True)
class Style:
    """How a kind of picture is drawn.

    Attributes:
        height: smallest and largest height of the capitals, as shares of the picture's side.
        most: the text's largest extent, as a share of the side.
        fine: outlined letters, plain inside, on a hatched ground.
    """

    height: tuple[float, float]
    most: float
    fine: bool = False


@dataclass(frozen=True)
class Scene:
    """What is random about one picture."""

    font: str
    palette: int
    height: float  # of the capitals, share of the side
    angle: float
    shift: tuple[float, float]  # of the free space on each side
    hatch: float  # cycles per pixel
    hatch_angle: float


def draw_scene(rng: np.random.Generator, fonts: Sequence[str], style: Style) -> Scene:
    """A random scene; the number and order of the draws are fixed."""
    low, high = style.height
    return Scene(
        font=fonts[int(rng.integers(len(fonts)))],
        palette=int(rng.integers(len(PALETTES))),
        height=float(low + (high - low) * rng.random()),
        angle=float(LARGEST_ANGLE * (2 * rng.random() - 1)),
        shift=(float(LARGEST_SHIFT * (2 * rng.random() - 1)), float(LARGEST_SHIFT * (2 * rng.random() - 1))),
        hatch=float(HATCH[0] + (HATCH[1] - HATCH[0]) * rng.random()),
        hatch_angle=float(180 * rng.random()),
    )


def draw(text: str, size: int, scene: Scene, style: Style) -> Image.Image:
    """The picture, RGB, size x size pixels."""
    large = OVERSAMPLING * size
    ground, ink = PALETTES[scene.palette]
    letters, halo = _masks(text, large, scene, style)
    picture = Image.new("RGB", (large, large), ground)
    if style.fine:
        hatch = _hatch(large, scene)
        picture.paste(Image.new("RGB", (large, large), ink), mask=hatch)
        picture.paste(ground, mask=halo)
    picture.paste(ink, mask=letters)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def _masks(text: str, large: int, scene: Scene, style: Style) -> tuple[Image.Image, Image.Image]:
    """The letters' ink, and what of the hatched ground they cover; both turned and moved."""
    line = OUTLINE * OVERSAMPLING if style.fine else 0.0
    pixels = _font_pixels(text, large, scene, style)
    face = font(scene.font, pixels)
    left, top, right, bottom = face.getbbox(text, anchor="ls")
    width, height = right - left, bottom - top
    turned_width, turned_height = _turned(width, height, scene.angle)
    free = [max(0.0, large - extent - 4 * OVERSAMPLING) / 2 for extent in (turned_width, turned_height)]
    centre = [large / 2 + shift * room for shift, room in zip(scene.shift, free, strict=True)]
    at = (large / 2 - left - width / 2, large / 2 - top - height / 2)

    def placed(stroke: float) -> Image.Image:
        mask = Image.new("L", (large, large), 0)
        ImageDraw.Draw(mask).text(at, text, 255, face, anchor="ls", stroke_width=stroke)
        offset = (round(centre[0] - large / 2), round(centre[1] - large / 2))
        return mask.rotate(scene.angle, Image.Resampling.BICUBIC, translate=offset)

    if not style.fine:
        return placed(0), Image.new("L", (1, 1))
    outer = placed(line)
    inner = placed(0)
    outline = Image.fromarray(
        np.clip(np.asarray(outer, np.int16) - np.asarray(inner, np.int16), 0, 255).astype(np.uint8)
    )
    return outline, placed(2 * line)


def _font_pixels(text: str, large: int, scene: Scene, style: Style) -> int:
    """The font size at which capitals have the scene's height, or smaller if the turned text would be too large."""
    probe = font(scene.font, 200)
    _, top, _, bottom = probe.getbbox("H", anchor="ls")
    pixels = 200 * scene.height * large / (bottom - top)
    left, top, right, bottom = probe.getbbox(text, anchor="ls")
    extent = max(_turned(right - left, bottom - top, scene.angle)) * pixels / 200
    return max(8, int(pixels * min(1.0, style.most * large / extent)))


def _turned(width: float, height: float, angle: float) -> tuple[float, float]:
    """Width and height of a turned box."""
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    return width * cos + height * sin, width * sin + height * cos


def _hatch(large: int, scene: Scene) -> Image.Image:
    """A sinusoidal grating as a mask, so that it has one frequency and no harmonics that could fold."""
    angle, frequency = math.radians(scene.hatch_angle), scene.hatch / OVERSAMPLING
    axis = np.arange(large, dtype=np.float32)
    phase = 2 * math.pi * frequency * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None])
    return Image.fromarray(np.round(127.5 + 127.5 * np.cos(phase)).astype(np.uint8))
