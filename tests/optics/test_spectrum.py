"""Spectral analysis: the folding identity, its energies, rings and the Wiener gain, against plain decimation of pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from refocus_ext.optics.prefilter import prefilters
from refocus_ext.optics.spectrum import (
    WienerEstimate,
    decimated_parts,
    energy,
    fold,
    fold_axis,
    hann,
    in_band,
    power,
    radial_mean,
    spectrum,
    wiener_gain,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, relative: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


# ------------------------------------------------------------------------------------------------ eq. 6-8


@pytest.mark.parametrize("s", [1, 2, 3, 8])
def test_folding_is_the_spectrum_of_the_decimated_image(s: int) -> None:
    x = noise(2, 3, 48, 24)
    assert close(fold(torch.fft.fft2(x), s), torch.fft.fft2(x[..., ::s, ::s]))


def test_eq_6_as_printed() -> None:
    x = noise(64)
    X = torch.fft.fft(x)
    printed = (X[:32] + torch.roll(X, -32)[:32]) / 2  # 1/2 [X(omega) + X(omega + pi)]
    assert close(fold_axis(X, 2), printed) and close(torch.fft.fft(x[::2]), printed)


def test_eq_7_and_8_with_an_ideal_filter_and_their_factors() -> None:
    # 1-D, 2:1, away from the edge of the band: A = 1/2 X(omega + pi), and its energy is 1/4 of that of X(omega + pi).
    x = noise(64)
    X = torch.fft.fft(x)
    ideal = torch.fft.fftfreq(64).abs() < 0.25
    A = fold_axis(X, 2) - fold_axis(X * ideal, 2)
    replica = (X * ~ideal).roll(-32)[:32] + (X * ~ideal)[:32]
    assert close(A, replica / 2)
    assert float(A.abs().square().sum()) == pytest.approx(float(replica.abs().square().sum()) / 4, rel=1e-12)
    # the sentence below eq. 7, L(omega) = X(omega), is off by the factor that D carries
    assert close(fold_axis(X * ideal, 2)[:16], X[:16] / 2)


def test_eq_8_in_two_dimensions_has_1_over_s_to_the_fourth() -> None:
    s, x = 4, noise(32, 32)
    X = torch.fft.fft2(x)
    outside = X * ~in_band(X, s)
    shifts = itertools.product(range(0, 32, 8), repeat=2)
    replicas = sum((outside.roll((-u, -v), (0, 1))[:8, :8] for u, v in shifts), torch.zeros(8, 8, dtype=X.dtype))
    A = decimated_parts(X, s).alias
    assert close(A, replicas / s**2)
    assert float(A.abs().square().sum()) == pytest.approx(float(replicas.abs().square().sum()) / s**4, rel=1e-12)


@pytest.mark.parametrize("kind", ["disk", "gaussian", "box", "none"])
def test_any_filter_splits_d_into_l_and_a_and_each_into_band_and_alias(kind: str) -> None:
    x, s = noise(3, 64, 64), 4
    X = torch.fft.fft2(x)
    filter = next(f for f in prefilters(s, 5.0) if f.name == kind)
    H, _ = filter.on_grid(64, 64)
    D, L, A = (decimated_parts(V, s) for V in (X, H * X, (1 - H) * X))
    for d, low, residual in zip(D, L, A, strict=True):
        assert close(low + residual, d)
    assert close(sum(D, torch.zeros(())), torch.fft.fft2(x[..., ::s, ::s]))


def test_energies_are_those_of_the_pixels() -> None:
    x, s = noise(2, 32, 32), 4
    X = torch.fft.fft2(x)
    e = energy(X, s)
    in_band_image = torch.fft.ifft2(X * in_band(X, s)).real
    assert close(power(X), x.square().mean((-2, -1)))
    assert close(e.total, x[:, ::s, ::s].square().mean((-2, -1)))
    assert close(e.in_band, in_band_image[:, ::s, ::s].square().mean((-2, -1)))
    assert close(e.alias, (x - in_band_image)[:, ::s, ::s].square().mean((-2, -1)))
    assert close(e.in_band + e.alias + e.cross, e.total)


def test_over_all_decimation_phases_interference_cancels() -> None:
    x, s = noise(32, 32), 4
    each = [energy(torch.fft.fft2(x.roll((-p, -q), (0, 1))), s) for p in range(s) for q in range(s)]
    alias, cross = (torch.stack([getattr(e, name) for e in each]) for name in ("alias", "cross"))
    assert float(alias.mean()) == pytest.approx(float(each[0].alias_any_phase), rel=1e-12)
    assert abs(float(cross.mean())) < 1e-14 < float(cross.abs().max())
    assert float(alias.max() / alias.min()) > 1.01  # a single phase may be luckier than another


def test_folding_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="30 samples cannot be decimated by 4"):
        fold(torch.zeros(32, 30), 4)
    with pytest.raises(ValueError, match="by 0"):
        fold_axis(torch.zeros(8), 0)


# ------------------------------------------------------------------------------------------------ images to spectra


@pytest.mark.parametrize("periodic", [True, False])
def test_spectra_have_no_mean(periodic: bool) -> None:
    X = spectrum(noise(3, 32, 32) + 5, periodic)
    assert X.dtype == torch.complex128 and float(X[:, 0, 0].abs().max()) < 1e-9


def test_the_window_keeps_energy_and_hides_the_borders() -> None:
    assert float(hann(torch.zeros(64, 64, dtype=torch.float64)).square().mean()) == pytest.approx(1)
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(64, 64)  # does not tile: -1 meets 1
    bare, windowed = (energy(spectrum(ramp, periodic), 4) for periodic in (True, False))
    assert float(bare.alias / bare.in_band) > 0.03
    assert float(windowed.alias / windowed.in_band) < 1e-5


def test_rings_of_white_noise_are_level_and_a_sinusoid_stands_in_its_ring() -> None:
    f, means = radial_mean(power_spectrum(noise(64, 64, 64)).mean(0))
    assert f.tolist() == [k / 64 for k in range(1, 32)] and float((means / 1.0 - 1).abs().max()) < 0.1
    t = torch.arange(64, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * (6 * t[:, None] + 8 * t[None, :]) / 64)
    assert int(radial_mean(power_spectrum(wave))[1].argmax()) + 1 == 10  # hypot(6, 8)


def power_spectrum(x: Tensor) -> Tensor:
    """Mean 1 for white noise of variance 1."""
    return torch.fft.fft2(x).abs().square() / x.shape[-1] ** 2


def test_rings_need_a_square() -> None:
    with pytest.raises(ValueError, match="got 8 x 6"):
        radial_mean(torch.zeros(8, 6))


# ------------------------------------------------------------------------------------------------ Wiener gain


def test_wiener_gain_is_eq_12() -> None:
    gain = wiener_gain(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    assert gain.tolist() == [0.75, 0.0, 0.0]


def test_wiener_gain_of_a_known_spectrum() -> None:
    # White noise of variance 1 in the band and 1/9 outside. Onto each frequency s^2 - 1 = 3 replicas fold: 1 / (1 + 3/9).
    s, estimate = 2, WienerEstimate(2)
    for seed in range(8):
        X = torch.fft.fft2(noise(16, 32, 32, seed=seed))
        estimate.update(torch.where(in_band(X, s), X, X / 3))
    f, gain = estimate.gain()
    assert f[0] == 1 / 32 and f[-1] < 0.25
    assert float((gain - 0.75).abs().max()) < 0.06 and float(gain.mean()) == pytest.approx(0.75, abs=0.01)


def test_wiener_gain_takes_one_image_and_refuses_none() -> None:
    one = WienerEstimate(2)
    with pytest.raises(ValueError, match="update it with one"):
        one.gain()
    X = torch.fft.fft2(noise(32, 32))
    one.update(X * in_band(X, 2))
    assert one.gain()[1].tolist() == [1.0] * 7
