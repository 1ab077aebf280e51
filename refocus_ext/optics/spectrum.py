"""Spectral analysis of decimation (eq. 6-8, 12): folding, alias and passband energy, radial spectra, the Wiener gain.

Everything is exact on the DFT of a periodic image. Shape suffixes: H, W of the image, h = H / s and w = W / s
of the image decimated by s. X is torch.fft.fft2(x), in FFT order; frequencies are in cycles per pixel of the
undecimated image. *In-band* means strictly below the new Nyquist frequency 0.5 / s in both axes, *alias* all else.

The factors in the paper's equations, with X(omega + u) the replicas that decimation by s superimposes:
- eq. 6 is right: 1-D, 2:1, D(omega) = 1/2 [X(omega) + X(omega + pi)].
- eq. 7's 1/2 is that of 1-D and 2:1. In 2-D by s it is 1/s^2, over s^2 - 1 shifts u != 0: 1/64 for the paper's s_1 = 8. It is
  A_k only for the ideal filter: for any other, A_k also holds (1 - H) X of the passband (`decimated_parts`).
- the sentence below eq. 7, L(omega) = X(omega), drops the 1/2 (1/s^2) of eq. 6 that D keeps.
- eq. 8's 1/4 is right for 1-D and 2:1, with the 1/2 of eq. 6 carried through. In 2-D by s it is 1/s^4 and the norm is that
  of the *sum* of the replicas: summing their energies instead is right only on average over the s^2 decimation phases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = -200.0  # dB: float64's rounding error; JSON has no minus infinity


def fold_axis(X: Tensor, s: int, dim: int = -1) -> Tensor:
    """Spectrum of every s-th sample along one axis: the mean of the s replicas (eq. 6 for s = 2).

    Raises:
        ValueError: s is below 1, or the axis is not a multiple of s.

    >>> x = torch.randn(12, dtype=torch.float64)
    >>> torch.allclose(fold_axis(torch.fft.fft(x), 3), torch.fft.fft(x[::3]))
    True
    """
    length = X.shape[dim]
    if s < 1 or length % s:
        raise ValueError(f"{length} samples cannot be decimated by {s} exactly; use a divisor of {length}")
    # D(m) = 1/s sum over u = 0 .. s-1 of X(m + u n / s)
    return X.unflatten(dim, (s, length // s)).mean(dim - 1 if dim < 0 else dim)


def fold(X_HW: Tensor, s: int) -> Tensor:
    """Spectrum (..., h, w) of x[..., ::s, ::s] from that of x: eq. 6-7 in two dimensions, 1/s^2 over s^2 replicas.

    Raises:
        ValueError: H or W is not a multiple of s.
    """
    return fold_axis(fold_axis(X_HW, s, -1), s, -2)


def in_band(X_HW: Tensor, s: int) -> Tensor:
    """(H, W) bool: the frequencies of a spectrum (..., H, W) strictly below the new Nyquist 0.5 / s in both axes.

    All of them for s = 1, where nothing folds.
    """
    H, W = X_HW.shape[-2:]
    if s == 1:
        return torch.ones(H, W, dtype=torch.bool, device=X_HW.device)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=X_HW.device).abs() < 0.5 / s for n in (H, W))
    return rows[:, None] & columns[None, :]


class Parts(NamedTuple):
    """Spectra (..., h, w) of the two summands of a decimated image: the in-band part, and the part folded onto it."""

    in_band: Tensor
    alias: Tensor


def decimated_parts(V_HW: Tensor, s: int) -> Parts:
    """Splits the spectrum of a view *before* decimation by s; the parts sum to the spectrum of the decimated view.

    For D_k give X, for L_k give H X, for A_k give (1 - H) X with the OTF H of the blur. For A_k `in_band` is the passband's
    blur residual and only `alias` is what eq. 7 describes.
    """
    return Parts(*(fold(part_HW, s) for part_HW in _split(V_HW, s)))


def _split(V_HW: Tensor, s: int) -> tuple[Tensor, Tensor]:
    inside_HW = torch.where(in_band(V_HW, s), V_HW, 0)
    return inside_HW, V_HW - inside_HW


def power(X_HW: Tensor) -> Tensor:
    """Mean square over the samples of the image with spectrum X (Parseval), (...,), in squared units of the image."""
    H, W = X_HW.shape[-2:]
    return (X_HW.real.square() + X_HW.imag.square()).sum(dim=(-2, -1)) / (H * W) ** 2


@dataclass(frozen=True)
class Energy:
    """Mean squares over samples, each (...,): the energy balance (eq. 8) of a view decimated by s, total = in_band + alias + cross.

    `cross` is twice the inner product of the two parts: it averages out over the s^2 decimation phases, and so do the
    interferences among the replicas; `alias_any_phase` is that average of `alias`.
    """

    in_band: Tensor
    alias: Tensor
    total: Tensor
    alias_any_phase: Tensor

    @property
    def cross(self) -> Tensor:
        return self.total - self.in_band - self.alias


def energy(V_HW: Tensor, s: int) -> Energy:
    """The energy balance of a view with spectrum V before its decimation by s, for the decimation that keeps pixel (0, 0)."""
    inside_HW, outside_HW = _split(V_HW, s)
    in_band_hw, alias_hw = fold(inside_HW, s), fold(outside_HW, s)
    return Energy(power(in_band_hw), power(alias_hw), power(in_band_hw + alias_hw), power(outside_HW))


# ------------------------------------------------------------------------------------------------ images to spectra


def hann(x_HW: Tensor) -> Tensor:
    """Separable periodic Hann window (H, W) for x, with mean square 1: it keeps the energy of a stationary image."""
    H, W = x_HW.shape[-2:]
    rows, columns = (torch.hann_window(n, periodic=True, dtype=x_HW.dtype, device=x_HW.device) for n in (H, W))
    window = rows[:, None] * columns[None, :]
    return window / window.square().mean().sqrt()


def spectrum(x_HW: Tensor, periodic: bool) -> Tensor:
    """float64 DFT (..., H, W) of images without their mean: a constant neither aliases nor blurs.

    Args:
        periodic: the image tiles seamlessly (the charts). Otherwise (photographs) a Hann window is applied first, because
            the jump between opposite borders would appear as high frequencies. The window precedes any filter, so that
            every identity in this file is exact for the windowed image.
    """
    x = x_HW.double()
    if periodic:
        return torch.fft.fft2(x - x.mean(dim=(-2, -1), keepdim=True))
    window = hann(x)
    # The mean under the window, so that the windowed image has none.
    mean = (x * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    return torch.fft.fft2((x - mean) * window)


def radial_mean(P_HW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of (..., H, H) over rings of radius 1, 2, .. H/2 - 1 DFT bins.

    Returns:
        frequencies in cycles per sample of the image (R,), and means (..., R). The mean of the image (radius 0) and the
        corners beyond the Nyquist frequency are excluded.

    Raises:
        ValueError: not square, or H below 4.
    """
    H, W = P_HW.shape[-2:]
    if H != W or H < 4:
        raise ValueError(f"rings need a square spectrum of at least 4 x 4, got {H} x {W}")
    f = torch.fft.fftfreq(H, d=1 / H, dtype=torch.float64, device=P_HW.device)
    ring = torch.hypot(f[:, None], f[None, :]).round().long().flatten()
    rings = H // 2 - 1
    cells = ring.bincount()
    sums = P_HW.new_zeros(*P_HW.shape[:-2], len(cells)).index_add_(-1, ring, P_HW.flatten(-2))
    return torch.arange(1, rings + 1, dtype=torch.float64) / H, (sums / cells)[..., 1 : rings + 1]


# ------------------------------------------------------------------------------------------------ Wiener gain


def wiener_gain(S_xx: Tensor, S_nn: Tensor) -> Tensor:
    """Eq. 12, alpha = S_xx / (S_xx + S_nn), in [0, 1]; 0 if there is neither signal nor noise.

    >>> wiener_gain(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor([0.7500, 0.0000])
    """
    total = S_xx + S_nn
    return torch.where(total > 0, S_xx / torch.where(total > 0, total, 1.0), 0.0)


class WienerEstimate:
    """Eq. 12 from data: S_xx is the in-band part of a decimated view, S_nn its alias part, averaged over images and rings.

    `update` with the spectra of the undecimated view; `gain` returns frequencies and alpha. Wiener's filter assumes that
    signal and alias are uncorrelated; `Energy.cross` shows how well this holds.
    """

    def __init__(self, s: int) -> None:
        self.s = s
        self.S_xx_hw: Tensor | float = 0.0
        self.S_nn_hw: Tensor | float = 0.0

    def update(self, V_HW: Tensor) -> None:
        """Adds spectra (..., H, H) of the view before decimation."""
        parts = decimated_parts(V_HW, self.s)
        sums = [part.abs().square().reshape(-1, *part.shape[-2:]).sum(0) for part in parts]
        self.S_xx_hw, self.S_nn_hw = self.S_xx_hw + sums[0], self.S_nn_hw + sums[1]

    def gain(self) -> tuple[Tensor, Tensor]:
        """Frequencies in cycles per pixel of the undecimated image (R,), and alpha (R,).

        Raises:
            ValueError: no image yet.
        """
        if not isinstance(self.S_xx_hw, Tensor) or not isinstance(self.S_nn_hw, Tensor):
            raise ValueError("a Wiener gain is estimated from images; update it with one first")
        f, S_xx = radial_mean(self.S_xx_hw)
        return f / self.s, wiener_gain(S_xx, radial_mean(self.S_nn_hw)[1])


def dB(ratio: float) -> float:
    """10 log10, at least FLOOR."""
    return max(FLOOR, 10 * math.log10(ratio)) if ratio > 0 else FLOOR
