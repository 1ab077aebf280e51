"""The energy of pictures in two bands of frequencies: where jagged edges add some, and where folded hatches (moire) do.

Frequencies are in cycles per pixel; 0.5 is Nyquist's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

EDGES = (0.35, math.inf)  # finished letters are steep but smooth there; stairs and checkerboards are not
# Below the hatched grounds' own band (0.28 to 0.40). Taking every second pixel folds a frequency f > 0.25 of an axis to 0.5 - f,
# which puts the hatches into this band unless they are near the diagonal.
MOIRE = (0.08, 0.24)
BANDS = {"edges": EDGES, "moire": MOIRE}
LUMA = (0.299, 0.587, 0.114)


class BandEnergy:
    """The share of a set's energy in each band, the mean over images of shares of each image's own energy."""

    def __init__(self) -> None:
        self.count = 0
        self._sums = dict.fromkeys(BANDS, 0.0)

    def update(self, image_B3HW: Tensor) -> None:
        """Adds images in [-1,1] of equal, square size."""
        energy_BHW = power(image_B3HW)
        whole_B = energy_BHW.sum((1, 2)).clamp_min(1e-12)
        radius = _radius(image_B3HW.shape[-1], image_B3HW.device)
        for name, (low, high) in BANDS.items():
            inside = (radius >= low) & (radius < high)
            self._sums[name] += float((energy_BHW[:, inside].sum(1) / whole_B).sum())
        self.count += len(image_B3HW)

    def shares(self) -> dict[str, float]:
        """Share of the energy in each band."""
        return {name: value / self.count for name, value in self._sums.items()}


def power(image_B3HW: Tensor) -> Tensor:
    """Energy of the luminance at each frequency, (B,H,W), without the mean; a Hann window hides the picture's borders."""
    size = image_B3HW.shape[-1]
    luma = image_B3HW.new_tensor(LUMA)
    grey = torch.einsum("bchw,c->bhw", image_B3HW.float(), luma)
    window = torch.hann_window(size, periodic=False, device=grey.device)
    window = window[:, None] * window[None, :]
    grey = grey - (grey * window).sum((1, 2), keepdim=True) / window.sum()
    return torch.fft.fft2(grey * window).abs().square()


def _radius(size: int, device: torch.device) -> Tensor:
    axis = torch.fft.fftfreq(size, device=device)
    return torch.hypot(axis[:, None], axis[None, :])


def decibels(shares: Mapping[str, float], fresh: Mapping[str, float]) -> dict[str, float]:
    """How much more energy than in fresh letters each band has, dB: 0 equal, above 0 too much, below 0 too little."""
    return {name: 10 * math.log10(max(shares[name], 1e-12) / max(fresh[name], 1e-12)) for name in shares}
