"""A picture taken apart: tokens under a focus pyramid, their maps as pictures, and what they decode to."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from patches import Focus, patched
from patches.protocols import device_of
from refocus_ext import api
from refocus_ext.counting import counted
from refocus_ext.errors import UsageError
from refocus_ext.images.picture import font_of
from refocus_ext.optics.names import BLUR_TABLE
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.web.figures import Figure, figures, shown
from refocus_ext.web.models import Coder

GOLDEN = 0.618033988749895  # steps of hue that never come close to an earlier one
SIDE = 240  # pixels of a drawn token map, at least
NARROWEST = 36  # pixels of a cell that has its number written in it


def with_blur(pyramid: FocusPyramid, blur: str, rho_max: float) -> FocusPyramid:
    """The pyramid with another blur.

    Raises:
        UsageError: the radius is too large for the image.
    """
    try:
        return dataclasses.replace(pyramid, blur=blur, rho_max=rho_max)
    except ValueError as error:
        raise UsageError(f"{error}.") from None


def in_words(pyramid: FocusPyramid) -> str:
    """'defocus disk, radii 6, 3, 0 px'."""
    title = BLUR_TABLE[pyramid.blur].title
    radii = ", ".join(f"{radius:g}" for radius in pyramid.radii)
    return f"{title}, radii {radii} px" if BLUR_TABLE[pyramid.blur].shaped_by == "radius" else title


@dataclass(frozen=True)
class Coded:
    """A picture x (3,H,W) in [-1,1], its token maps (pn*pn,) and the image decoded from each prefix, under one pyramid."""

    pyramid: FocusPyramid
    x: Tensor
    tokens: Sequence[Tensor]
    prefixes: Sequence[Tensor]

    def psnr(self) -> list[float]:
        """Of each prefix against the sharp picture, dB."""
        errors = (float((prefix - self.x).square().mean()) / 4 for prefix in self.prefixes)
        return [-10 * float(np.log10(max(error, 1e-10))) for error in errors]


@torch.no_grad()
def code(coder: Coder, x_13HW: Tensor, pyramid: FocusPyramid) -> Coded:
    """Tokens as the VQVAE makes them of the focus states of `pyramid`, and their images."""
    x_13HW = x_13HW.to(device_of(coder.vae))
    with patched(coder.vae, Focus(pyramid)):
        tokens = coder.vae.img_to_idxBl(x_13HW)
    images = api.prefixes(coder.model, tokens)
    return Coded(
        pyramid, x_13HW[0].cpu(), [idx[0].cpu() for idx in tokens], [image[0].float().cpu() for image in images]
    )


def draw_tokens(idx: Tensor) -> Image.Image:
    """A token map: equal codes in equal colours, with their numbers where there is room."""
    side = int(len(idx) ** 0.5)
    numbers = idx.reshape(side, side).numpy()
    cell = -(-SIDE // side)
    colours = np.array([[colour_of(int(number)) for number in row] for row in numbers], dtype=np.uint8)
    picture = Image.fromarray(colours).resize((cell * side,) * 2, Image.Resampling.NEAREST)
    if cell >= NARROWEST:
        pen, font = ImageDraw.Draw(picture), font_of(min(28, cell // 3))
        for (row, column), number in np.ndenumerate(numbers):
            pen.text(((column + 0.5) * cell, (row + 0.5) * cell), str(number), (0, 0, 0), font, anchor="mm")
    return picture


def colour_of(number: int) -> tuple[int, int, int]:
    """A light colour, far from those of the neighbouring numbers."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.35 + 0.2 * (number // 7 % 3) / 2, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def decoded_html(coded: Coded, sides: Sequence[int], title: str, note: str) -> str:
    """The picture, and the images of the prefixes with their PSNR."""
    drawn = [Figure(shown(coded.x * 0.5 + 0.5), "the picture")]
    for side, image, psnr in zip(sides, coded.prefixes, coded.psnr(), strict=True):
        drawn.append(Figure(shown(image * 0.5 + 0.5), f"to {side}x{side}", f"PSNR {psnr:.1f} dB"))
    return figures(drawn, title, note)


def tokens_html(coded: Coded, sides: Sequence[int], title: str, other: Coded | None = None) -> str:
    """The token maps; `other` is what they are compared with."""
    drawn = []
    for i, (side, idx) in enumerate(zip(sides, coded.tokens, strict=True)):
        note = f"{counted(len(idx.unique()), 'code')} in {counted(len(idx), 'token')}"
        if other is not None:
            note += f", {int((idx != other.tokens[i]).sum())} other than sharp"
        drawn.append(Figure(draw_tokens(idx), f"{side}x{side}", note))
    return figures(
        drawn, title, "Equal codes have equal colours; their numbers are written where there is room.", "smooth"
    )
