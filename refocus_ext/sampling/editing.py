"""Zero-shot editing: the tokens of the kept part are given, the student draws the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from patches.sampling import Watch
from refocus_ext.errors import UsageError
from refocus_ext.sampling.sampler import Guidance, KeptTokens, sample_images, to_unit
from refocus_ext.sampling.student import STRIDE, Student


class Box(NamedTuple):
    """A rectangle of latent cells, ends excluded."""

    x0: int
    y0: int
    x1: int
    y1: int

    def pixels(self) -> str:
        """The extent of the box for a message: 'pixels 64..192 x 64..192'."""
        x0, y0, x1, y1 = (STRIDE * side for side in self)
        return f"pixels {x0}..{x1} across, {y0}..{y1} down"


def parse_box(text: str, image_size: int) -> tuple[Box, str]:
    """'x0,y0,x1,y1' -> the nearest box of whole latent cells, and the unit the numbers were read in.

    Raises:
        UsageError: the text is not four numbers, or the box is not inside the image or narrower than half a cell.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
        x0, y0, x1, y1 = numbers
    except ValueError:
        raise UsageError(f"{text} is not a box; give four numbers, x0,y0,x1,y1.") from None
    unit, side = ("fractions", 1) if max(numbers) <= 1 else ("pixels", image_size)
    if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
        raise UsageError(
            f"{text}, read as {unit}, is not a box inside the image; x0 < x1 and y0 < y1 must lie between 0 and {side}."
        )
    cells = image_size // STRIDE
    box = Box(*(round(number / side * cells) for number in numbers))
    if box.x0 == box.x1 or box.y0 == box.y1:
        raise UsageError(
            f"{text} is narrower than a latent cell of {STRIDE} pixels, the finest this student can edit; widen it."
        )
    return box, unit


def kept_region(box: Box, cells: int, outside: bool) -> Tensor:
    """The latent cells that are kept, bool (n,n): all but the box, or with `outside` only the box.

    Raises:
        UsageError: nothing or everything would be kept.
    """
    inside = torch.zeros(cells, cells, dtype=torch.bool)
    inside[box.y0 : box.y1, box.x0 : box.x1] = True
    if inside.all():
        left = "repaint" if outside else "keep"
        raise UsageError(
            f"the box, rounded to latent cells of {STRIDE} pixels ({box.pixels()}), covers the whole image, which leaves "
            f"nothing to {left}; make it smaller."
        )
    return inside if outside else ~inside


@dataclass(frozen=True)
class Edit:
    """An edited image: the original, its reconstruction from tokens, and the edits; all in [0,1].

    `kept_HW` is True for pixels of kept cells.
    """

    original_3HW: Tensor
    reconstruction_3HW: Tensor
    edited_B3HW: Tensor
    kept_HW: Tensor

    def kept_psnr(self) -> list[float]:
        """PSNR in dB of each edit's kept region against the reconstruction."""
        error = (self.edited_B3HW - self.reconstruction_3HW)[:, :, self.kept_HW].square().mean((1, 2))
        return (-10 * error.clamp_min(1e-10).log10()).tolist()


@torch.no_grad()
def edit(
    student: Student,
    x_13HW: Tensor,
    kept_nn: Tensor,
    labels: Sequence[int],
    seed: int = 0,
    guidance: Guidance | None = None,
    watch: Watch | None = None,
) -> Edit:
    """Repaints the cells of an image that are not kept, once for each label.

    Args:
        x_13HW: in [-1,1], of the student's size. It is tokenized as in the VAE's training: through the run's focus
            pyramid if it has one.
        kept_nn: cells of the last token map that are kept.
    """
    x_13HW, kept_nn = x_13HW.to(student.device), kept_nn.to(student.device)
    idx_S = student.tokens(x_13HW)
    decoded = to_unit(student.vae.idxBl_to_img(idx_S, same_shape=True, last_one=True)[0].float())
    keep = KeptTokens(student, idx_S, kept_nn)
    edited = sample_images(student, labels, seed=seed, guidance=guidance, watch=watch, exchange=keep)
    kept_HW = kept_nn.repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1)
    return Edit(to_unit(x_13HW[0]), decoded, edited, kept_HW)
