"""Properties of the point spread functions and of the convolution that applies them."""

import math
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refocus_ext.optics import psf as optics
from refocus_ext.optics.names import BLUR_TABLE, BLURS
from refocus_ext.optics.psf import (
    blur,
    check_tables,
    defocus,
    disk_otf,
    disk_psf,
    gaussian_psf,
    half_width,
    psf,
    sinc_psf,
)

RADII = (0.3, 0.7, 1.0, 1.5, 2.6, 3.0, 4.37, 6.0, 9.0, 12.0)


@pytest.fixture(autouse=True)
def cold_caches() -> None:
    optics._cached_psf.cache_clear()
    optics._cached_otf.cache_clear()


def image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def widened(taps: torch.Tensor, half: int) -> torch.Tensor:
    return F.pad(taps, (half - taps.shape[0] // 2,) * 4)


def variance(taps: torch.Tensor) -> float:
    t = torch.arange(taps.shape[0], dtype=taps.dtype) - taps.shape[0] // 2
    return float((taps.sum(0) * t**2).sum())


def spectrum(taps: torch.Tensor, size: int) -> torch.Tensor:
    half = taps.shape[0] // 2
    centred = F.pad(taps, (0, size - taps.shape[0], 0, size - taps.shape[0])).roll((-half, -half), (0, 1))
    return torch.fft.fft2(centred)


def supersampled_disk(radius: float, half: int, n: int = 201) -> np.ndarray:
    """Counts n x n points of every pixel, one pixel after the other."""
    inside = np.empty((2 * half + 1, 2 * half + 1))
    points = (np.arange(n) + 0.5) / n - 0.5
    for i in range(-half, half + 1):
        for j in range(-half, half + 1):
            inside[i + half, j + half] = np.mean((i + points[:, None]) ** 2 + (j + points[None]) ** 2 <= radius**2)
    return inside / inside.sum()


def reflected(i: int, n: int) -> int:
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def looped_convolution(x_HW: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The definition: out[i, j] = sum over a, b of taps[a, b] x[i - a, j - b], indices reflected at the borders."""
    (H, W), half = x_HW.shape, taps.shape[0] // 2
    out = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            for a in range(-half, half + 1):
                for b in range(-half, half + 1):
                    out[i, j] += taps[a + half, b + half] * x_HW[reflected(i - a, H), reflected(j - b, W)]
    return out


@pytest.mark.parametrize("kind", BLURS)
@pytest.mark.parametrize("radius", RADII)
def test_sums_to_one_and_has_eight_fold_symmetry(kind: str, radius: float) -> None:
    taps = psf(kind, radius, factor=4, dtype=torch.float64)
    assert taps.shape[0] == taps.shape[1] == 2 * half_width(kind, radius, factor=4) + 1
    assert abs(taps.sum().item() - 1) < 1e-13
    for other in (taps.T, taps.flip(0), taps.flip(1)):
        assert torch.equal(taps, other)
    if kind != "sinc":
        assert (taps >= 0).all()


@pytest.mark.parametrize("radius", [0.3, 0.7, 1.0, 2.6, 4.37, 6.0])
def test_disk_agrees_with_counting_points(radius: float) -> None:
    taps = disk_psf(radius, dtype=torch.float64)
    half = taps.shape[0] // 2
    counted = supersampled_disk(radius, half + 1)  # one ring more: nothing of the circle may lie outside the taps
    assert np.abs(counted - widened(taps, half + 1).numpy()).max() < 2e-3 / max(radius, 0.5) ** 2


def test_disk_taps_are_exact_areas() -> None:
    # Pixels wholly inside the circle hold the share 1 / (pi rho^2), and radius 1 has a closed form by hand: the centre
    # pixel is full, and a neighbour holds the circle right of x = 1/2 between y = -1/2 and 1/2.
    for radius in (1.5, 3.0, 12.0):
        taps = disk_psf(radius, dtype=torch.float64)
        assert taps.max().item() == pytest.approx(1 / (math.pi * radius**2), rel=1e-12)
    neighbour = math.sqrt(3) / 4 + math.pi / 6 - 0.5  # 2 * integral over [0, 1/2] of sqrt(1 - y^2) - 1/2
    taps = disk_psf(1.0, dtype=torch.float64)
    assert taps[1, 0].item() == pytest.approx(neighbour / math.pi, rel=1e-12)
    assert taps[0, 0].item() == pytest.approx((math.pi - 1 - 4 * neighbour) / 4 / math.pi, rel=1e-12)


@pytest.mark.parametrize("kind", ["disk", "gaussian"])
def test_continuous_in_the_radius(kind: str) -> None:
    # Across half-integers the disk's number of taps changes, and across 0.5 it stops being the identity.
    for radius in (0.5, 0.8, 1.5, 2.0, 2.5, 3.7, 11.5):
        below, above = (psf(kind, radius + step, dtype=torch.float64) for step in (-1e-6, 1e-6))
        half = above.shape[0] // 2
        assert (widened(below, half) - widened(above, half)).abs().sum() < 2e-5
    assert not torch.equal(psf(kind, 3.0), psf(kind, 3.01))


@pytest.mark.parametrize(("kind", "of_a_pixel"), [("disk", 1 / 12), ("gaussian", 0.0)])
def test_variance_per_axis(kind: str, of_a_pixel: float) -> None:
    for radius in torch.arange(3, 14, 0.13).tolist():
        assert variance(psf(kind, radius, dtype=torch.float64)) == pytest.approx(radius**2 / 4 + of_a_pixel, rel=0.02)


def test_gaussian_is_cut_where_nothing_is_left() -> None:
    for radius in (3.0, 7.3, 12.0):
        taps = gaussian_psf(radius, dtype=torch.float64)
        assert taps.sum(0)[0] < 1e-6
        assert variance(taps) == pytest.approx(radius**2 / 4, rel=1e-5)


def test_disk_spectrum_follows_the_analytic_otf() -> None:
    f = torch.fft.fftfreq(128, dtype=torch.float64)
    fx, fy = f[None, :], f[:, None]
    for radius in (3.0, 4.5, 6.0, 9.0, 12.0):
        measured = spectrum(disk_psf(radius, dtype=torch.float64), 128)
        error = (measured - disk_otf(radius, fx, fy)).abs()
        assert error[torch.hypot(fx, fy) <= 0.25].max() < 0.01
        assert error.max() < (0.01 if radius >= 9 else 0.03)
        # What is left are the replicas of sampling, not an error of the taps: with them it agrees everywhere.
        shifts = range(-5, 6)
        with_replicas = sum(disk_otf(radius, fx + m, fy + n) for m in shifts for n in shifts)
        assert (measured - with_replicas).abs().max() < 1e-3


def test_disk_otf_by_hand() -> None:
    assert disk_otf(12.0, 0.0).item() == 1
    zero = 3.8317059702075125 / (2 * math.pi)  # of J1
    assert abs(disk_otf(9.0, zero / 9).item()) < 1e-9
    assert disk_otf(9.0, 0.8 / 9).item() < -0.1  # spurious resolution: inverted contrast past the first zero
    assert disk_otf(0.0, 0.25, 0.5).item() == pytest.approx(math.sin(math.pi / 4) / (math.pi / 4) * 2 / math.pi)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_sinc_passes_below_and_stops_above_its_cutoff(factor: int) -> None:
    gain = spectrum(sinc_psf(factor, dtype=torch.float64), 512).abs()[0]
    f, cutoff = torch.fft.fftfreq(512).abs(), 0.5 / factor
    assert (gain[f <= 0.6 * cutoff] - 1).abs().max() < 1e-3
    assert gain[f >= 1.4 * cutoff].max() < 1e-3
    assert gain[(f - cutoff).abs().argmin()].item() == pytest.approx(0.5, abs=0.01)


def test_radius_zero_factor_one_and_none_are_the_identity() -> None:
    one, x = torch.ones(1, 1), image(1, 3, 9, 7, dtype=torch.float32)
    for taps in (disk_psf(0.0), disk_psf(0.5), gaussian_psf(0.0), sinc_psf(1), psf("none", 5.0, 8)):
        assert torch.equal(taps, one)
        assert torch.equal(blur(x, taps), x)
    for kind, radius, factor in (("disk", 0.0, 8), ("gaussian", 0.0, 8), ("sinc", 5.0, 1), ("none", 5.0, 8)):
        assert defocus(x, kind, radius, factor) is x


@pytest.mark.parametrize("kind", ["disk", "gaussian", "sinc"])
def test_blur_agrees_with_the_looped_definition(kind: str) -> None:
    x = image(2, 2, 19, 24)
    taps = psf(kind, 2.7, factor=2, dtype=torch.float64)
    expected = np.array([[looped_convolution(c.numpy(), taps.numpy()) for c in b] for b in x[:1, :1]])
    assert np.abs(blur(x, taps)[:1, :1].numpy() - expected).max() < 1e-13
    assert np.abs(blur(x.float(), taps.float())[:1, :1].numpy() - expected).max() < 1e-6
    torch.testing.assert_close(defocus(x, kind, 2.7, 2), blur(x, taps), rtol=0, atol=1e-14)


def test_blur_is_a_convolution_also_with_a_lopsided_psf_and_at_the_tightest_border() -> None:
    x, taps = image(1, 1, 4, 11), image(7, 7, seed=1)  # half-width 3, height 4
    assert np.abs(blur(x, taps)[0, 0].numpy() - looped_convolution(x[0, 0].numpy(), taps.numpy())).max() < 1e-13
    impulse = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    impulse[0, 0, 7, 7] = 1
    torch.testing.assert_close(blur(impulse, taps)[0, 0, 4:11, 4:11], taps, rtol=0, atol=1e-14)


def test_every_channel_and_image_is_blurred_by_itself() -> None:
    x = image(3, 2, 20, 20)
    y = defocus(x, "disk", 3.0)
    for b in range(3):
        for c in range(2):
            torch.testing.assert_close(y[b, c], defocus(x[b : b + 1, c : c + 1], "disk", 3.0)[0, 0])


@pytest.mark.parametrize("kind", BLURS)
@pytest.mark.parametrize("size", [(64, 64), (67, 71)])
def test_a_constant_is_preserved(kind: str, size: tuple[int, int]) -> None:
    x = torch.full((1, 3, *size), 0.7)
    torch.testing.assert_close(defocus(x, kind, 5.3, 4), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(defocus(x.double(), kind, 5.3, 4), x.double(), rtol=0, atol=1e-14)


def test_the_mean_survives_and_the_contrast_falls() -> None:
    x = image(1, 1, 64, 64)
    sharp, soft = (defocus(x, "disk", radius).std() for radius in (1.0, 4.0))
    assert soft < sharp / 2 < x.std() / 2


@pytest.mark.parametrize("kind", ["disk", "gaussian", "sinc"])
def test_gradcheck(kind: str) -> None:
    x, radius, factor = image(1, 2, 11, 10).requires_grad_(), 1.3, 1.05
    assert torch.autograd.gradcheck(lambda t: defocus(t, kind, radius, factor), (x,))
    taps = psf(kind, radius, factor, dtype=torch.float64).clone().requires_grad_()
    assert torch.autograd.gradcheck(blur, (x, taps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    x = image(1, 3, 32, 32).to(dtype)
    plain, plain_blur = defocus(x, "disk", 3.0), blur(x, disk_psf(3.0))
    optics._cached_otf.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):  # with a cache that is filled under autocast, then from it
            assert torch.equal(defocus(x, "disk", 3.0), plain)
        assert torch.equal(blur(x, disk_psf(3.0)), plain_blur)
    assert plain.dtype == plain_blur.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_blurred_in_float32(dtype: torch.dtype) -> None:
    x = image(1, 3, 32, 32).to(dtype)
    assert torch.equal(defocus(x, "disk", 5.0), defocus(x.float(), "disk", 5.0).to(dtype))


def test_cache_hit_is_the_same_object_and_keys_are_told_apart() -> None:
    taps = psf("disk", 3.0)
    assert psf("disk", 3) is taps and psf("disk", 3.0, factor=8) is taps and psf("disk", 3.0, device="cpu") is taps
    assert psf("disk", 3.0, dtype=torch.float64).dtype == torch.float64
    assert psf("disk", 3.0, device="meta").device.type == "meta"
    assert psf("gaussian", 3.0).shape != taps.shape
    x = image(1, 1, 32, 32)
    for y in (x, x.float(), x.bfloat16(), x[..., :30]):
        defocus(y, "disk", 3.0)
        defocus(y, "disk", 3.0)
    assert optics._cached_otf.cache_info().misses == 3  # float64, float32 (bfloat16 shares it), another size
    assert optics._cached_otf.cache_info().hits == 5


def test_cache_is_bounded() -> None:
    for i in range(200):
        psf("disk", i / 100)
        defocus(torch.zeros(1, 1, 8, 8), "disk", 0.6 + i / 100)
    for cached in (optics._cached_psf, optics._cached_otf):
        assert cached.cache_info().currsize <= 64


def test_cache_filled_in_inference_mode_serves_training() -> None:
    x = image(1, 1, 16, 16)
    with torch.inference_mode():
        defocus(x, "disk", 2.0)
        taps = psf("disk", 2.0, dtype=torch.float64)
    assert not taps.is_inference() and not taps.requires_grad
    x.requires_grad_()
    defocus(x, "disk", 2.0).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert optics._cached_otf.cache_info().misses == 1


def test_threads_that_fill_one_cold_cache_agree() -> None:
    x = image(1, 1, 48, 48)
    expected = {radius: defocus(x, "disk", radius) for radius in (2.0, 3.0, 4.0)}
    optics._cached_otf.cache_clear()
    barrier = threading.Barrier(6)
    failures: list[float] = []

    def work() -> None:
        barrier.wait()
        failures.extend(r for r, y in expected.items() for _ in range(5) if not torch.equal(defocus(x, "disk", r), y))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("kind", ["disk", "gaussian", "sinc"])
def test_an_image_too_small_to_reflect_is_refused(kind: str) -> None:
    half = half_width(kind, 3.0, 2)
    fits, narrow = image(1, 1, half + 1, half + 5), image(1, 1, half + 5, half)
    assert defocus(fits, kind, 3.0, 2).shape == blur(fits, psf(kind, 3.0, 2)).shape == fits.shape
    with pytest.raises(ValueError, match=rf"(radius 3|factor 2) reaches {half} px.*{half + 5} x {half}.*larger image"):
        defocus(narrow, kind, 3.0, 2)
    with pytest.raises(ValueError, match=rf"reaches {half} px.*{half + 5} x {half}.*smaller radius"):
        blur(narrow, psf(kind, 3.0, 2))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown blur 'box'; choose one of {', '.join(BLURS)}"):
        psf("box", 3.0)
    for radius in (-1.0, math.nan, math.inf):
        for make in (disk_psf, gaussian_psf):
            with pytest.raises(ValueError, match="radius must be finite and at least 0"):
                make(radius)
    for factor in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="factor must be finite and at least 1"):
            sinc_psf(factor)
    for taps in (torch.ones(2, 2), torch.ones(3, 5), torch.ones(3)):
        with pytest.raises(ValueError, match="odd T"):
            blur(torch.ones(1, 1, 8, 8), taps)
    for x in (torch.ones(8, 8), torch.ones(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="floating point"):
            defocus(x, "disk", 2.0)


@pytest.mark.parametrize(
    ("blurs", "kernels", "words"),
    [
        (("disk", "ring"), ("disk",), "names.py has the blur 'ring', but KERNELS in optics/psf.py has no PSF for it"),
        (("disk",), ("disk", "ring"), "psf.py has a PSF 'ring', but BLUR_TABLE in optics/names.py has no such blur"),
    ],
)
def test_a_blur_with_half_of_its_entries_is_named(blurs: tuple[str], kernels: tuple[str], words: str) -> None:
    check_tables(blurs, blurs)
    with pytest.raises(ImportError, match=re.escape(words)):
        check_tables(blurs, kernels)


def test_every_blur_has_what_figures_need() -> None:
    assert {blur.shaped_by for blur in BLUR_TABLE.values()} <= {"radius", "factor", "nothing"}
    assert (
        len({blur.colour for blur in BLUR_TABLE.values()}) == len({b.title for b in BLUR_TABLE.values()}) == len(BLURS)
    )


def test_the_names_of_blurs_come_without_torch() -> None:
    code = "import sys; from refocus_ext.optics.names import BLURS, CHARTS; assert BLURS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
