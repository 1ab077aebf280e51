"""Usual low-pass filters before a decimation by s, each as taps and transfer function, and their flaws.

The pyramid's own blurs, the box average (area pooling), PyTorch's bicubic resize with and without
antialiasing, and none. Frequencies are in cycles per pixel of the undecimated image, float64 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.optics.names import BLUR_TABLE
from refocus_ext.optics.psf import psf

SCAN = 513  # frequencies per axis from 0 to 0.5: eight on each lobe of the longest filter, so within 0.1 dB
VISIBLE = 1e-3  # of contrast; a smaller negative OTF is the ripple of a truncated filter, not spurious resolution


@dataclass(frozen=True)
class Prefilter:
    """A symmetric filter before a decimation by `s`.

    Args:
        taps_TT: (T, T), float64, symmetric in both axes, summing to 1; for even T its centre lies between pixels.
        offset: sample position, in pixels right of and below pixel (0, 0) of each s x s block: 0, or (s-1)/2 for filters
            over the whole block.
    """

    name: str
    s: int
    taps_TT: Tensor
    offset: float = 0.0

    def otf(self, fy: Tensor, fx: Tensor) -> Tensor:
        """Real transfer function about the filter's centre at (fy, fx) cycles/pixel, (Y, X) for (Y,) and (X,)."""
        T = self.taps_TT.shape[0]
        t = torch.arange(T, dtype=torch.float64) - (T - 1) / 2
        cosines = [torch.cos(2 * math.pi * f[:, None] * t) for f in (fy, fx)]
        return cosines[0] @ self.taps_TT @ cosines[1].T

    def on_grid(self, H: int, W: int) -> tuple[Tensor, Tensor]:
        """At the DFT frequencies of an H x W image: the transfer function (H, W), and the phase (H, W) of the offset."""
        fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (H, W))
        angle = 2 * math.pi * self.offset * (fy[:, None] + fx[None, :])
        return self.otf(fy, fx), torch.polar(torch.ones_like(angle), angle)


def prefilters(s: int, radius: float) -> list[Prefilter]:
    """All filters of the benchmark for a state that decimates by s (a power of 2, at least 2) and blurs by `radius` pixels."""
    centre = (s - 1) / 2
    blurs = [kind for kind, blur in BLUR_TABLE.items() if blur.shaped_by != "nothing"]
    own = [Prefilter(kind, s, psf(kind, radius, s, dtype=torch.float64)) for kind in blurs]
    return [
        *own,
        Prefilter("box", s, _separable(torch.ones(s, dtype=torch.float64)), centre),
        Prefilter("bicubic, antialias", s, _separable(_bicubic(s, antialias=True)), centre),
        Prefilter("bicubic", s, _separable(_bicubic(s, antialias=False)), centre),
        Prefilter("none", s, torch.ones(1, 1, dtype=torch.float64)),
    ]


def _separable(line_T: Tensor) -> Tensor:
    line_T = line_T / line_T.sum()
    return line_T[:, None] * line_T[None, :]


def _bicubic(s: int, antialias: bool) -> Tensor:
    """The pixel weights of PyTorch's resize by 1/s, (4 s,), from its responses to unit impulses."""
    length, sample = 16 * s, 8  # a sample far from both borders, where the resize would clamp
    impulses = torch.eye(length, dtype=torch.float64)[:, None, None, :].expand(length, 1, s, length)
    answers = F.interpolate(impulses, size=(1, 16), mode="bicubic", antialias=antialias)[:, 0, 0, sample]
    first = sample * s + s // 2 - 2 * s
    taps = answers[first : first + 4 * s]
    return (taps + taps.flip(0)) / 2


# ------------------------------------------------------------------------------------------------ worst cases


@dataclass(frozen=True)
class Flaws:
    """The effect of a filter on single sinusoids, independent of the image.

    `worst_*`: the sinusoid at or above the new Nyquist (in either axis) that passes best. `inner_*`: the same among those
    that fold into the inner half of the new band (below 0.25 / s in both axes), where they look like coarse moire
    and are not in the transition band. Gains are |OTF|, frequencies (fy, fx). `first_zero`: where the OTF first changes its
    sign along an axis (and falls to -0.001 or less before it turns), None if it never does. `inverted_*`: the most
    negative OTF (0 if none) in the passband and anywhere: dark and bright are exchanged there.
    """

    worst_gain: float
    worst_at: tuple[float, float]
    inner_gain: float
    inner_at: tuple[float, float]
    first_zero: float | None
    inverted_in_band: float
    inverted_anywhere: float


def flaws(filter: Prefilter) -> Flaws:
    """Scans the transfer function over 0 .. 0.5 cycles/pixel in both axes (it is symmetric)."""
    f = torch.linspace(0, 0.5, SCAN, dtype=torch.float64)
    H = filter.otf(f, f)
    band = f < 0.5 / filter.s
    return Flaws(
        *_loudest(f, H.abs(), _outside(f, filter.s)),
        *_loudest(f, H.abs(), _folds_inside(f, filter.s)),
        first_zero=_first_zero(filter),
        inverted_in_band=_inverted(H[band][:, band]),
        inverted_anywhere=_inverted(H),
    )


def _outside(f: Tensor, s: int) -> Tensor:
    """(F, F) bool: not below the new Nyquist in both axes."""
    band = f < 0.5 / s
    return ~(band[:, None] & band[None, :])


def _folds_inside(f: Tensor, s: int) -> Tensor:
    """(F, F) bool: outside the band, and folded into its inner half."""
    # Distance to the nearest multiple of 1 / s: the frequency after folding.
    inner = (f - (f * s).round() / s).abs() < 0.25 / s
    return _outside(f, s) & inner[:, None] & inner[None, :]


def _loudest(f: Tensor, gain: Tensor, allowed: Tensor) -> tuple[float, tuple[float, float]]:
    """The largest gain among the allowed frequencies, and where."""
    y, x = divmod(int((gain * allowed).argmax()), len(f))
    return float(gain[y, x]), (float(f[y]), float(f[x]))


def _first_zero(filter: Prefilter) -> float | None:
    f = torch.linspace(0, 0.5, 16 * (SCAN - 1) + 1, dtype=torch.float64)
    H = filter.otf(torch.zeros(1, dtype=torch.float64), f)[0]
    negative = torch.nonzero(H < -VISIBLE).flatten()
    if not len(negative):
        return None
    i = int(torch.nonzero(H[: int(negative[0])] > 0).max())
    return float(f[i] + (f[i + 1] - f[i]) * H[i] / (H[i] - H[i + 1]))


def _inverted(H: Tensor) -> float:
    lowest = float(H.min())
    return lowest if lowest < -VISIBLE else 0.0
