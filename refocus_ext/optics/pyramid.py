"""The focus pyramid: the schedule of focus states (eq. 2) and their views of an image (eq. 1, 3, 4).

Focus states are indexed k = 0 .. K-1 in code, blurriest first: index k is the paper's state k + 1, and warnings count
from 1 as the paper does. Shape suffixes: B batch, C channels, H height and width. Radii are in pixels, decimation
factors in pixels per sample, sizes n in latent cells of `stride` pixels, images in [-1, 1].
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.optics.names import BLUR_TABLE, BLURS, VIEWS
from refocus_ext.optics.psf import defocus, half_width

RAYLEIGH = 1.22  # rho >= 1.22 s puts the disk's first OTF zero (0.61 / rho) at or below the new Nyquist (0.5 / s)


@dataclass(frozen=True)
class FocusPyramid:
    """K focus states of square images. All views take (B, C, H, H) with H = `image_size`.

    Args:
        image_size: H, pixels; a multiple of `stride`.
        states: K; allowed while the blurriest view has at least one latent cell, H / stride >= 2^(K-1).
        rho_max: radius of the blurriest state, pixels.
        blur: "disk" (the paper), "gaussian" (equal variance), "sinc" (near-ideal filter at each state's new Nyquist) or
            "none": the structure path sees x itself, without noise, while the low and alias views keep the disk; or "sharp":
            as "none", but with everything else that focus states have: K views with noise and losses of their own (an ablation).
        noise_min, noise_max: noise beta of the first and of the last state, in units of the image.
        stride: of the encoder, pixels per latent cell.
        views: at which size the structure tokenizer encodes F_k: "full" resolution, "decimated" by s_k (r_k = Q_L(L_k) by the
            letter), or "half": one pixel in two for the states with s_k >= 4.

    Raises:
        ValueError: a value outside these limits, or a PSF too wide for reflected borders.

    >>> pyramid = FocusPyramid()
    >>> pyramid.radii, pyramid.factors
    ((12.0, 9.0, 3.0, 0.0), (8, 4, 2, 1))
    >>> pyramid.states_of((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)
    """

    image_size: int = 256
    states: int = 4
    rho_max: float = 12.0
    blur: str = "disk"
    noise_min: float = 1e-3
    noise_max: float = 1e-2
    stride: int = 16
    views: str = "full"

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_views()
        if self.blur not in BLURS:
            raise ValueError(f"unknown blur {self.blur!r}; choose one of {', '.join(BLURS)}")
        if not (math.isfinite(self.rho_max) and self.rho_max >= 0):
            raise ValueError(f"rho_max must be finite and at least 0 pixels, got {self.rho_max}; 0 means no blur")
        if not (0 <= self.noise_min <= self.noise_max < math.inf):
            raise ValueError(
                f"noise must satisfy 0 <= noise_min <= noise_max, got {self.noise_min} and {self.noise_max}; "
                "set both to 0 for no noise"
            )
        reach = half_width(self._view_blur, self.radii[0], self.factors[0])
        if reach >= self.image_size:
            raise ValueError(
                f"the widest {self._view_blur} PSF (rho_max {self.rho_max:g}) reaches {reach} px to each side, but "
                f"reflected borders allow at most {self.image_size - 1} px at image_size {self.image_size}: "
                "use a smaller rho_max, fewer states or a larger image_size"
            )

    def _check_sizes(self) -> None:
        for name in ("image_size", "states", "stride"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.image_size % self.stride:
            below = self.image_size // self.stride * self.stride
            near = f"{below} or {below + self.stride}" if below else f"{self.stride}"
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the encoder stride {self.stride}; use {near}"
            )
        largest = self.latent_size.bit_length()  # n / 2^(K-1) >= 1
        if self.states > largest:
            raise ValueError(
                f"{self.states} focus states would decimate the {self.latent_size} x {self.latent_size} latent of a "
                f"{self.image_size} px image below one cell; use at most {largest} states or a larger image_size"
            )

    def _check_views(self) -> None:
        if self.views not in VIEWS:
            raise ValueError(f"unknown views {self.views!r}; choose one of {', '.join(VIEWS)}")
        if largest := next((d for d in self.subsampling if self.latent_size % d), 0):
            raise ValueError(
                f'views "{self.views}" would encode one pixel in {largest} of a {self.image_size} px image, whose latent of '
                f'{self.latent_size} cells that does not divide; use views "full" or another image_size'
            )

    @property
    def subsampling(self) -> tuple[int, ...]:
        """d_k: the structure tokenizer encodes F_k with one sample in d_k; 1 for views "full" and for the sharp state."""
        if not self.refocuses or self.views == "full":
            return (1,) * self.states
        return self.factors if self.views == "decimated" else tuple(2 if s >= 4 else 1 for s in self.factors)

    @property
    def radii(self) -> tuple[float, ...]:
        """rho_k, pixels, falling from rho_max to exactly 0; (0,) for K = 1."""
        # Eq. 2 with its sign corrected: rho_k = rho_max (1 + cos(pi k / (K-1))) / 2. As printed, with 1 - cos, it rises
        # from 0, against the paper's own rho_1 > ... > rho_K = 0. Rounded, so that 9 is 9 and not 9 + 2e-15.
        last = self.states - 1
        blurred = (self.rho_max * (1 + math.cos(math.pi * k / last)) / 2 for k in range(last))
        return (*(round(rho, 12) for rho in blurred), 0.0)

    @property
    def factors(self) -> tuple[int, ...]:
        """s_k = 2^(K-1-k), pixels per sample of the decimated views."""
        return tuple(2 ** (self.states - 1 - k) for k in range(self.states))

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """beta_k, linear in k from noise_min to noise_max; (noise_min,) for K = 1."""
        steps = max(self.states - 1, 1)
        return tuple(self.noise_min * (1 - k / steps) + self.noise_max * (k / steps) for k in range(self.states))

    @property
    def latent_size(self) -> int:
        """n = H / stride, latent cells."""
        return self.image_size // self.stride

    @property
    def refocuses(self) -> bool:
        """Whether the structure path has focus states: False for blur "none", which is upstream's pyramid."""
        return self.blur != "none"

    @property
    def blurs(self) -> bool:
        """Whether they are blurred."""
        return BLUR_TABLE[self.blur].shaped_by != "nothing"

    @property
    def _view_blur(self) -> str:
        """The blur of the low and alias views: the disk where the structure path has none, so that the teacher has alias views."""
        return self.blur if self.blurs else "disk"

    def state_of_scale(self, pn: int | tuple[int, int], latent: int | None = None) -> int:
        """g(pn): the coarsest state whose view has room for a token map of pn cells (a pair: its larger side).

        `latent` is the latent's size n if it differs from this pyramid's.

        Raises:
            ValueError: pn below 1 or above n.
        """
        n = self.latent_size if latent is None else latent
        sides = pn if isinstance(pn, tuple) else (pn, pn)
        if min(sides) < 1 or max(sides) > n:
            raise ValueError(f"a token map of {pn} cells is not within 1 .. {n}, the latent of this pyramid")
        # g(pn) = min { k : pn <= n_k = n / s_k }
        return next(k for k, s in enumerate(self.factors) if max(sides) * s <= n)

    def states_of(self, patch_nums: Sequence[int]) -> tuple[int, ...]:
        """The focus state that serves each token scale.

        Raises:
            ValueError: patch_nums empty, not rising, or not ending at `latent_size`.
        """
        rising = all(a < b for a, b in itertools.pairwise(patch_nums))
        if not patch_nums or not rising or patch_nums[-1] != self.latent_size:
            raise ValueError(
                f"patch_nums must rise to {self.latent_size} = image_size {self.image_size} / stride {self.stride}, "
                f"got {tuple(patch_nums)}; change patch_nums or image_size"
            )
        return tuple(self.state_of_scale(pn) for pn in patch_nums)

    def last_scale_of_state(self, patch_nums: Sequence[int]) -> tuple[int | None, ...]:
        """For each state the index of the last token scale that it serves, None if it serves none.

        Raises:
            ValueError: as `states_of`.

        >>> FocusPyramid().last_scale_of_state((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
        (1, 3, 6, 9)
        """
        last = {k: i for i, k in enumerate(self.states_of(patch_nums))}
        return tuple(last.get(k) for k in range(self.states))

    def rayleigh_warnings(self) -> list[str]:
        """One sentence for each decimated state whose radius is below 1.22 s_k; [] for a blur without a radius."""
        if BLUR_TABLE[self.blur].shaped_by != "radius":
            return []
        return [
            f"focus state {k + 1} has a blur radius of {rho:g} px but is decimated by {s}: below {RAYLEIGH} x {s} = "
            f"{RAYLEIGH * s:g} px the blur passes frequencies that alias; raise rho_max or use fewer states"
            for k, (rho, s) in enumerate(zip(self.radii, self.factors, strict=True))
            if s > 1 and rho < RAYLEIGH * s
        ]

    def focused(self, x_BCHH: torch.Tensor, k: int) -> torch.Tensor:
        """F_k at full resolution, (B, C, H, H). For the last state and for blurs "none" and "sharp" this is x itself."""
        self._check_view(x_BCHH, k)
        # Eq. 1: F_k = k_rho * x
        return defocus(x_BCHH, self.blur, self.radii[k], self.factors[k])

    def structure_view(self, x_BCHH: torch.Tensor, k: int) -> torch.Tensor:
        """F_k with one sample in d_k, (B, C, H / d_k, H / d_k), without noise.

        Samples are at the centres of their d_k x d_k blocks (for even d_k the mean of the four pixels around it), unlike those of
        `low`, at a corner: latents and images that are upsampled again then lie where those of the other states do.
        """
        focused, d = self.focused(x_BCHH, k), self.subsampling[k]
        return focused if d == 1 else F.interpolate(focused, scale_factor=1 / d, mode="bilinear")

    def structure_views(
        self, x_BCHH: torch.Tensor, generator: torch.Generator | None = None, training: bool = False
    ) -> list[torch.Tensor]:
        """What the structure tokenizer encodes: K tensors (B, C, H / d_k, H / d_k), `structure_view` plus beta_k noise while
        training.

        Noise is drawn state by state from `generator` (torch's default one if None), for any beta. With blur "none"
        there is neither blur nor noise: the result is K times x itself.
        """
        views = [self.structure_view(x_BCHH, k) for k in range(self.states)]
        if not (training and self.refocuses):
            return views
        # The noise term of eq. 3, at the resolution that the encoder sees.
        return [
            view + beta * torch.randn(view.shape, generator=generator, device=view.device, dtype=view.dtype)
            for view, beta in zip(views, self.noise_levels, strict=True)
        ]

    def low(self, x_BCHH: torch.Tensor, k: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """L_k, (B, C, H / s_k, H / s_k): blurred, decimated, plus beta_k `noise` of that shape if given.

        With blur "none" or "sharp" the blur is the disk's, as in `alias`.
        """
        self._check_view(x_BCHH, k)
        s = self.factors[k]
        # Eq. 3: L_k = (k_rho * x) decimated by s_k + beta_k eps
        low = defocus(x_BCHH, self._view_blur, self.radii[k], s)[..., ::s, ::s]
        return low if noise is None else low + self.noise_levels[k] * noise

    def decimated(self, x_BCHH: torch.Tensor, k: int) -> torch.Tensor:
        """D_k, (B, C, H / s_k, H / s_k): every s_k-th pixel, unfiltered, which causes aliasing."""
        self._check_view(x_BCHH, k)
        s = self.factors[k]
        return x_BCHH[..., ::s, ::s]

    def alias(self, x_BCHH: torch.Tensor, k: int) -> torch.Tensor:
        """A_k = D_k - L_k with the noise-free L_k, (B, C, H / s_k, H / s_k); exactly zero for the last state.

        A_k is the difference rounded once, to the nearest float. L_k + A_k equals D_k to the bit wherever
        |A_k| <= |D_k| / 2, and elsewhere up to the rounding of A_k (2^-23 in float32), the limit of a float where D_k
        needs finer bits than A_k has.
        """
        # Eq. 4: A_k = D_k - L_k
        return self.decimated(x_BCHH, k) - self.low(x_BCHH, k)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for a checkpoint; `from_dict` reads them. `views` came later: "full" is left out."""
        return {name: v for name, v in dataclasses.asdict(self).items() if (name, v) != ("views", "full")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "FocusPyramid":
        """The pyramid that `to_dict` described; absent fields take their defaults.

        Raises:
            ValueError: an unknown key, or a value outside its limits.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"unknown pyramid fields {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**fields)

    def _check_view(self, x_BCHH: torch.Tensor, k: int) -> None:
        if not 0 <= k < self.states:
            raise ValueError(f"focus state index {k} is not within 0 .. {self.states - 1}")
        if x_BCHH.ndim != 4 or x_BCHH.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"this pyramid is built for (B, C, {self.image_size}, {self.image_size}), got {tuple(x_BCHH.shape)}; "
                "resize the image or set image_size"
            )


def alias_views(pyramid: FocusPyramid, x_B3HW: Tensor) -> list[Tensor]:
    """The noise-free alias residuals A_k of the K-1 blurred states, (B,3,H/s_k,H/s_k)."""
    return [pyramid.alias(x_B3HW, k) for k in range(pyramid.states - 1)]
