"""Point spread functions of the focus states, and the convolution that applies them.

Shape suffixes: B batch, C channels, H height, W width, T taps per side of a PSF (odd). Lengths are in pixels,
frequencies in cycles/pixel. PSFs are built in float64 on the CPU, then cast and moved once per (kind, radius or factor,
size, device, dtype) and kept in a bounded cache. A cached tensor is shared: do not change it in place.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from refocus_ext.optics.names import BLUR_TABLE, BLURS

GAUSSIAN_REACH = 5.0  # in sigmas: the truncated weight is 6e-7, -125 dB
SINC_LOBES = 8  # zero crossings kept on each side; the PSF then fits every pyramid with stride > 8 and n / s_1 >= 1
SINC_BETA = 8.0  # Kaiser: stop band near -80 dB


def disk_psf(
    radius: float, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Normalized disk of `radius` pixels, (T, T): the PSF of a circular aperture out of focus (the paper's k_rho).

    Each tap is the exact area of its unit pixel inside the circle, so a fractional radius changes it continuously.
    A disk that lies within one pixel (radius <= 0.5) is the identity, [[1.]].

    Raises:
        ValueError: radius negative or not finite.

    >>> disk_psf(0.0)
    tensor([[1.]])
    >>> disk_psf(3.0).shape
    torch.Size([7, 7])
    """
    return _disk(_checked_radius(radius)).to(device=_resolved(device), dtype=dtype)


def gaussian_psf(
    radius: float, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Gaussian with the per-axis variance of the disk of `radius` pixels (sigma = radius / 2), (T, T); sums to 1.

    Taps are the curve's values at the pixel centres, as in the usual Gaussian blur; radius -> 0 is the identity.
    (The disk's taps, areas of pixels, have 1/12 more variance.) Truncated at 5 sigma, beyond which 6e-7 of the weight lies.

    Raises:
        ValueError: radius negative or not finite.
    """
    return _gaussian(_checked_radius(radius)).to(device=_resolved(device), dtype=dtype)


def sinc_psf(
    factor: float, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Separable Kaiser-windowed sinc, cutoff 0.5 / `factor` cycles/pixel, (T, T): near the ideal filter of eq. 6-8.

    Eight zero crossings on each side, so half-width 8 * factor; -6 dB at the cutoff; factor 1 is the identity.

    Raises:
        ValueError: factor below 1 or not finite.
    """
    return _sinc(_checked_factor(factor)).to(device=_resolved(device), dtype=dtype)


def disk_otf(radius: float, fx: torch.Tensor | float, fy: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Analytic transfer function of the area-sampled disk at (fx, fy) cycles/pixel; float64, the shape of fx and fy.

    The taps' own spectrum is this plus the replicas that any sampling adds: for radius >= 3 within 0.01 up to 0.25
    cycles/pixel and within 0.03 anywhere, for radius >= 9 within 0.01 anywhere. The first zero is at 0.61 / radius
    cycles/pixel; beyond it, negative values invert contrast (spurious resolution).

    >>> round(disk_otf(12.0, 0.0).item(), 6), abs(disk_otf(12.0, 0.6098 / 12).item()) < 1e-4
    (1.0, True)
    """
    fx, fy = torch.as_tensor(fx, dtype=torch.float64), torch.as_tensor(fy, dtype=torch.float64)
    # OTF of a disk: jinc(v) = 2 J1(v) / v at v = 2 pi rho f, times sinc(fx) sinc(fy) for the pixel under each tap.
    v = 2 * math.pi * _checked_radius(radius) * torch.hypot(fx, fy)
    jinc = torch.where(v == 0, 1.0, 2 * torch.special.bessel_j1(v) / torch.where(v == 0, 1.0, v))
    return jinc * torch.sinc(fx) * torch.sinc(fy)


def psf(
    kind: str,
    radius: float,
    factor: float = 1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The (T, T) PSF of a kind of `BLURS`, cached; `BLUR_TABLE` says whether `radius`, `factor` or neither shapes it.

    Raises:
        ValueError: unknown kind, or a radius or factor outside its limits.

    >>> psf("disk", 3.0) is psf("disk", 3.0)
    True
    """
    return _cached_psf(kind, _shape_of(kind, radius, factor), _resolved(device), dtype)


def half_width(kind: str, radius: float, factor: float = 1) -> int:
    """Half-width of a PSF in pixels, (T - 1) / 2; reflected borders need a larger image."""
    shape = _shape_of(kind, radius, factor)
    return KERNELS[kind].half_width(shape)


def blur(x_BCHW: torch.Tensor, psf_TT: torch.Tensor) -> torch.Tensor:
    """Convolves every channel with one PSF; borders reflect (without repeating the edge). Same shape and dtype.

    A true convolution by FFT: exact up to rounding for any H and W, differentiable in both arguments. FFTs are not affected
    by autocast or TF32; half and bfloat16 images are computed in float32 and cast back.

    Raises:
        ValueError: the image is not (B, C, H, W) floating point, the PSF not (T, T) with odd T, or the PSF's half-width
            is not smaller than H and W.

    >>> blur(torch.ones(1, 1, 8, 8), disk_psf(3.0)).sub(1).abs().max().item() < 1e-6
    True
    """
    if psf_TT.ndim != 2 or psf_TT.shape[0] != psf_TT.shape[1] or psf_TT.shape[0] % 2 == 0:
        raise ValueError(f"a PSF must be (T, T) with odd T, got {tuple(psf_TT.shape)}")
    half = psf_TT.shape[0] // 2
    _check_image(x_BCHW, half, f"a PSF of {psf_TT.shape[0]} x {psf_TT.shape[0]} taps")
    if half == 0:
        return x_BCHW * psf_TT[0, 0]
    H, W = x_BCHW.shape[-2:]
    size = _fft_size(H, W, half)
    psf_TT = psf_TT.to(device=x_BCHW.device, dtype=_compute_dtype(x_BCHW.dtype))
    return _fft_convolve(x_BCHW, torch.fft.rfft2(psf_TT, s=size), half, size)


def defocus(x_BCHW: torch.Tensor, kind: str, radius: float, factor: float = 1) -> torch.Tensor:
    """`blur(x, psf(kind, radius, factor))` with a cached transfer function; returns x itself if the PSF is the identity.

    Raises:
        ValueError: as `psf` and `blur`.
    """
    shape = _shape_of(kind, radius, factor)
    half = KERNELS[kind].half_width(shape)
    _check_image(x_BCHW, half, f"the {kind} PSF of {BLUR_TABLE[kind].shaped_by} {shape:g}")
    if half == 0:
        return x_BCHW
    H, W = x_BCHW.shape[-2:]
    size = _fft_size(H, W, half)
    otf = _cached_otf(kind, shape, size, x_BCHW.device, _compute_dtype(x_BCHW.dtype))
    return _fft_convolve(x_BCHW, otf, half, size)


def _disk_half(radius: float) -> int:
    return max(math.ceil(radius - 0.5), 0)  # the last pixel that overlaps the circle


def _disk(radius: float) -> torch.Tensor:
    half = _disk_half(radius)
    if half == 0:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    # One quadrant, mirrored: eight-fold symmetric to the bit. Its first row and column are half pixels.
    edges = torch.arange(half + 2, dtype=torch.float64, device="cpu").sub(0.5).clamp(min=0)
    corner = _corner_area(edges[:, None], edges[None, :], radius)
    quadrant = corner[1:, 1:] - corner[:-1, 1:] - corner[1:, :-1] + corner[:-1, :-1]
    quadrant[0] *= 2
    quadrant[:, 0] *= 2
    quadrant = (quadrant + quadrant.T).clamp(min=0)
    mirror = torch.arange(-half, half + 1, device="cpu").abs()
    taps = quadrant[mirror][:, mirror]
    return taps / taps.sum()


def _corner_area(x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    # Area of the circle inside [0, x] x [0, y] = integral over [0, x] of min(y, sqrt(r^2 - t^2)) dt. The arc lies above
    # y up to a = sqrt(r^2 - y^2): y a + S(x) - S(a), with S(t) = (t sqrt(r^2 - t^2) + r^2 asin(t / r)) / 2.
    x, y = x.clamp(max=radius), y.clamp(max=radius)

    def under_arc(t: torch.Tensor) -> torch.Tensor:
        return (t * (radius**2 - t**2).clamp(min=0).sqrt() + radius**2 * (t / radius).asin()) / 2

    a = torch.minimum((radius**2 - y**2).clamp(min=0).sqrt(), x)
    return y * a + under_arc(x) - under_arc(a)


def _gaussian_half(radius: float) -> int:
    return math.ceil(GAUSSIAN_REACH * radius / 2)


def _gaussian(radius: float) -> torch.Tensor:
    half = _gaussian_half(radius)
    if half == 0:
        return _disk(0.0)
    # Second moment of a disk per axis: rho^2 / 4, hence sigma = rho / 2.
    t = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
    return _separable(torch.exp(-2 * (t / radius).square()))


def _sinc_half(factor: float) -> int:
    return math.ceil(SINC_LOBES * factor) if factor > 1 else 0


def _sinc(factor: float) -> torch.Tensor:
    half = _sinc_half(factor)
    # Ideal low-pass at 0.5 / s: sinc(t / s) / s, under a Kaiser window.
    t = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
    window = torch.kaiser_window(2 * half + 1, periodic=False, beta=SINC_BETA, dtype=torch.float64, device="cpu")
    return _separable(torch.sinc(t / factor) * (window + window.flip(0)))


class Kernel(NamedTuple):
    """A PSF as a function of the one number that shapes it, its radius or factor; `names.BLUR_TABLE` says which.

    `taps` returns (T, T), float64, on the CPU, summing to 1; `half_width` returns (T - 1) / 2 without computing them.
    """

    taps: Callable[[float], torch.Tensor]
    half_width: Callable[[float], int]


KERNELS: dict[str, Kernel] = {
    "disk": Kernel(_disk, _disk_half),
    "gaussian": Kernel(_gaussian, _gaussian_half),
    "sinc": Kernel(_sinc, _sinc_half),
    "sharp": Kernel(_disk, _disk_half),  # its shape is always 0, as is that of "none"
    "none": Kernel(_disk, _disk_half),
}


def check_tables(blurs: Iterable[str], kernels: Iterable[str]) -> None:
    """Raises ImportError unless every blur in `BLUR_TABLE` has a kernel, and the reverse."""
    if missing := sorted(set(blurs) - set(kernels)):
        raise ImportError(
            f"optics/names.py has the blur {missing[0]!r}, but KERNELS in optics/psf.py has no PSF for it"
        )
    if missing := sorted(set(kernels) - set(blurs)):
        raise ImportError(f"optics/psf.py has a PSF {missing[0]!r}, but BLUR_TABLE in optics/names.py has no such blur")


check_tables(BLUR_TABLE, KERNELS)


def _resolved(device: torch.device | str | None) -> torch.device:
    return torch.empty(0, device=device).device  # the default device for None, and one key for "cuda" and "cuda:0"


def _separable(line: torch.Tensor) -> torch.Tensor:
    taps = line[:, None] * line[None, :]
    return taps / taps.sum()


def _shape_of(kind: str, radius: float, factor: float) -> float:
    """The number that shapes a PSF of this kind, so that a PSF has one cache key."""
    if kind not in BLURS:
        raise ValueError(f"unknown blur {kind!r}; choose one of {', '.join(BLURS)}")
    if BLUR_TABLE[kind].shaped_by == "factor":
        return _checked_factor(factor)
    return _checked_radius(radius) if BLUR_TABLE[kind].shaped_by == "radius" else 0.0


def _checked_radius(radius: float) -> float:
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"a PSF radius must be finite and at least 0 pixels, got {radius}")
    return float(radius)


def _checked_factor(factor: float) -> float:
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"a decimation factor must be finite and at least 1, got {factor}")
    return float(factor)


def _check_image(x_BCHW: torch.Tensor, half: int, what: str) -> None:
    if x_BCHW.ndim != 4 or not x_BCHW.is_floating_point():
        raise ValueError(
            f"an image to blur must be (B, C, H, W) floating point, got {tuple(x_BCHW.shape)} {x_BCHW.dtype}"
        )
    H, W = x_BCHW.shape[-2:]
    if half >= min(H, W):
        raise ValueError(
            f"{what} reaches {half} px to each side, and reflected borders need an image larger than that both ways, "
            f"got {H} x {W}: use a larger image, a smaller radius or a smaller factor"
        )


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fft_size(H: int, W: int, half: int) -> tuple[int, int]:
    return _smooth(H + 2 * half), _smooth(W + 2 * half)


def _smooth(n: int) -> int:
    """The next length with no prime factor above 7: an FFT of 280 is three times as fast as one of 274 = 2 x 137."""
    while True:
        rest = n
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def _fft_convolve(x_BCHW: torch.Tensor, otf: torch.Tensor, half: int, size: tuple[int, int]) -> torch.Tensor:
    H, W = x_BCHW.shape[-2:]
    padded = F.pad(x_BCHW.to(_compute_dtype(x_BCHW.dtype)), (half,) * 4, mode="reflect")
    full = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * otf, s=size)
    # The PSF's first tap is at index 0, so the valid part of the circular convolution begins at T - 1 = 2 half.
    return full[..., 2 * half : 2 * half + H, 2 * half : 2 * half + W].to(x_BCHW.dtype)


# Filled outside inference mode, so that tensors cached in evaluation can be saved for a backward pass later.
# lru_cache is thread-safe: threads racing on one key build equal tensors and keep one.
@lru_cache(maxsize=64)
def _cached_psf(kind: str, shape: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return KERNELS[kind].taps(shape).to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _cached_otf(
    kind: str, shape: float, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        otf = torch.fft.rfft2(KERNELS[kind].taps(shape), s=size)
        return otf.to(device=device, dtype=torch.complex128 if dtype == torch.float64 else torch.complex64)
