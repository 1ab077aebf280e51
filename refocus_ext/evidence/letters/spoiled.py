"""Letters spoiled on purpose, each in one way: the measures must tell them apart, or they measure nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.evidence.letters.measures import Batch


def _pixels_left_out(image: Tensor) -> Tensor:
    """Every second pixel without a filter, enlarged bicubically: aliased, and soft."""
    return F.interpolate(image[..., ::2, ::2], scale_factor=2, mode="bicubic").clamp(-1, 1)


def _jagged(image: Tensor) -> Tensor:
    """Each pixel in the nearer of the picture's two colours: stairs along every edge."""
    flat = image.flatten(2)  # (B,3,N)
    ground = flat[:, :, :1]
    distance = (flat - ground).norm(dim=1)
    ink = flat.gather(2, distance.argmax(1)[:, None, None].expand(-1, 3, 1))
    near = (flat - ink).norm(dim=1, keepdim=True) < (flat - ground).norm(dim=1, keepdim=True)
    return torch.where(near, ink, ground).view_as(image)


def _blurred(image: Tensor, sigma: float = 2.0) -> Tensor:
    """Args: sigma: of a Gaussian, pixels at 64."""
    from torchvision.transforms.functional import gaussian_blur

    sigma *= image.shape[-1] / 64
    return gaussian_blur(image, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)


def _illegible(image: Tensor) -> Tensor:
    return _blurred(image, 6.0)


def _checkerboard(image: Tensor) -> Tensor:
    """The pattern that decoders leave, 6% of the range."""
    H, W = image.shape[-2:]
    sign = 1 - 2 * ((torch.arange(H)[:, None] + torch.arange(W)[None, :]) % 2)
    return (image + 0.12 * sign.to(image)).clamp(-1, 1)


def _same(image: Tensor) -> Tensor:
    return image


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "fresh letters": _same,
    "every second pixel": _pixels_left_out,
    "jagged": _jagged,
    "blurred": _blurred,
    "blurred beyond reading": _illegible,
    "checkerboard": _checkerboard,
}
SHUFFLED = "other labels"


def spoil(kind: str, batch: Batch) -> Batch:
    """A batch spoiled in one way of KINDS, or with the labels of other letters."""
    image, label = batch
    return (image, label.roll(1)) if kind == SHUFFLED else (KINDS[kind](image), label)
