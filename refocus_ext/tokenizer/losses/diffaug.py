"""DiffAug (Zhao et al., 2020): the discriminator sees real and reconstructed images through the same random, differentiable
changes, so that it cannot learn the images by heart.

Random numbers come from torch's global generators, which the training loop seeds at every step. Shapes: images (B,3,H,W) in
[-1,1]; results may exceed the range. Each image has its own changes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 1 / 8  # largest translation, as a share of a side
HOLE = 1 / 5  # side of the square that is cut out, as a share of a side: StyleGAN-T's and vaex's; DiffAug's own is 1/2


def diffaug(image_B3HW: Tensor) -> Tensor:
    """Colour, translation and cutout, in this order: the paper's strongest policy, with a smaller cutout."""
    return cutout(translated(recoloured(image_B3HW)))


def recoloured(x_B3HW: Tensor) -> Tensor:
    """Brightness +-0.5, saturation x 0 .. 2, contrast x 0.5 .. 1.5."""
    brightness, saturation, contrast = torch.rand(3, len(x_B3HW), 1, 1, 1, device=x_B3HW.device, dtype=x_B3HW.dtype)
    x = x_B3HW + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translated(x_B3HW: Tensor) -> Tensor:
    """Shifted by whole pixels, up to an eighth of a side in both directions; what comes in is 0."""
    for axis in (2, 3):
        x_B3HW = _shifted(x_B3HW, axis)
    return x_B3HW


def _shifted(x: Tensor, axis: int) -> Tensor:
    side = x.shape[axis]
    most = int(side * SHIFT + 0.5)
    start_B = torch.randint(0, 2 * most + 1, (len(x),), device=x.device)
    index = start_B.unsqueeze(1) + torch.arange(side, device=x.device)  # rows or columns of the padded image
    shape = [len(x), 1, 1, 1]
    shape[axis] = side
    padded = F.pad(x, (0, 0, most, most) if axis == 2 else (most, most, 0, 0))
    return padded.gather(axis, index.view(shape).expand_as(x))


def cutout(x_B3HW: Tensor) -> Tensor:
    """A square of a fifth of a side, with its centre anywhere in the image, is 0."""
    inside = [_within_hole(len(x_B3HW), side, x_B3HW.device) for side in x_B3HW.shape[2:]]
    hole_B1HW = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
    return x_B3HW.masked_fill(hole_B1HW, 0)


def _within_hole(batch: int, side: int, device: torch.device) -> Tensor:
    """Whether a row (or column) crosses the hole of each image, bool (batch, side)."""
    size = int(side * HOLE + 0.5)
    centre_B = torch.randint(0, side + 1 - size % 2, (batch, 1), device=device)
    offset = torch.arange(side, device=device) - (centre_B - size // 2)
    return (offset >= 0) & (offset < size)
