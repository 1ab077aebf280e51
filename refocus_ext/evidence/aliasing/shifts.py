"""Part (b) of the alias benchmark: does a tokenizer represent an image equally after a shift of less than a latent cell?

A reconstruction free of aliasing moves with its image: R(S_t x) = S_t R(x) for a shift by t pixels, whole or not. The
benchmark measures the deviation from this, for the image of each focus state's prefix and for its tokens. x is cut out of
a larger photograph, so that real content enters at the borders; a border of one latent cell (at most a quarter of the
image) is then excluded.

A reconstruction that is mostly blur passes this test trivially: moving it changes little. So every figure is given with the
PSNR of a reconstruction that ignores the shift; compare tokenizers by the gain over it, in dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patches.protocols import FocusedVQVAE
from refocus_ext.errors import UsageError
from refocus_ext.tokenizer.prefixes import decode_prefix
from refocus_ext.tokens.bare_tokenizer import Assumed, open_tokenizer
from refocus_ext.tokens.trained_tokenizer import training_left

SHIFTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # pixels, both right and down; VAR's stride is 16
MARGIN = 8  # pixels around the image that the largest shift moves in
BATCH = 8


class Prefixes(NamedTuple):
    """For a batch and each measured state: the image (B,3,H,H) of all tokens up to it, and its own tokens (B,N)."""

    image_K: list[Tensor]
    tokens_K: list[Tensor]


@dataclass(frozen=True)
class Subject:
    """Something that reconstructs images of `size` pixels; `states` are the focus states, from 1, that `look` returns."""

    name: str
    size: int
    states: tuple[int, ...]
    look: Callable[[Tensor], Prefixes]
    border: int = 16  # pixels excluded on each side, at least MARGIN


@dataclass(frozen=True)
class ShiftReading:
    """One state and shift (pixels), over all images. PSNRs in dB (peak 2), None if the two are bit-identical.

    `psnr` compares R(S_t x) with S_t R(x), `unmoved` R(x) with S_t R(x); `gain_dB` is their difference. `tokens_changed` is
    the share of the state's own tokens that differ between x and S_t x.
    """

    state: int
    shift: float
    psnr: float | None
    unmoved: float | None
    gain_dB: float | None
    tokens_changed: float


def moved(x_BCHW: Tensor, size: int, shift: float) -> Tensor:
    """The central `size` x `size` window of a larger image whose content has moved right and down by `shift` pixels.

    Whole pixels are cut out exactly; a fraction is a phase ramp on the DFT of the mirrored image (band-limited, and without a
    jump at the borders).
    """
    whole = math.floor(shift)
    if shift != whole:
        x_BCHW = _fraction(x_BCHW, shift - whole)
    first = (x_BCHW.shape[-1] - size) // 2 - whole
    return x_BCHW[..., first : first + size, first : first + size]


def _fraction(x_BCHW: Tensor, part: float) -> Tensor:
    H, W = x_BCHW.shape[-2:]
    mirrored = torch.cat([x_BCHW, x_BCHW.flip(-1)], -1)
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], -2)
    fy, fx = (torch.fft.fftfreq(2 * n, dtype=x_BCHW.dtype, device=x_BCHW.device) for n in (H, W))
    angle = -2 * math.pi * part * (fy[:, None] + fx[None, :])
    ramp = torch.polar(torch.ones_like(angle), angle)
    return torch.fft.ifft2(torch.fft.fft2(mirrored) * ramp).real[..., :H, :W]


@torch.no_grad()
def measure_shifts(
    subject: Subject, canvases: Iterable[Tensor], shifts: Sequence[float] = SHIFTS
) -> list[ShiftReading]:
    """Readings over batches (B, 3, size + 2 MARGIN, size + 2 MARGIN) of photographs."""
    K, T = len(subject.states), len(shifts)
    sums = torch.zeros(
        K, T, 4, dtype=torch.float64
    )  # squared errors of R and of an unmoved R, tokens changed, batches' sizes
    for canvas in canvases:
        still = subject.look(moved(canvas, subject.size, 0))
        for t, shift in enumerate(shifts):
            after = subject.look(moved(canvas, subject.size, shift))
            for k in range(K):
                sums[k, t] += _differences(subject, still, after, k, shift)
    return [
        _reading(state, shift, *(sums[k, t, :3] / sums[k, t, 3]).tolist())
        for k, state in enumerate(subject.states)
        for t, shift in enumerate(shifts)
    ]


def _differences(subject: Subject, still: Prefixes, after: Prefixes, k: int, shift: float) -> Tensor:
    inner = subject.size - 2 * subject.border
    expected = moved(still.image_K[k].double(), inner, shift)
    got, unmoved = (moved(image.double(), inner, 0) for image in (after.image_K[k], still.image_K[k]))
    changed = (after.tokens_K[k] != still.tokens_K[k]).double().mean(dim=1)
    errors = [(image - expected).square().mean(dim=(1, 2, 3)) for image in (got, unmoved)]
    return torch.stack([*(e.sum() for e in errors), changed.sum(), torch.tensor(float(len(changed)))]).cpu()


def _reading(state: int, shift: float, error: float, unmoved: float, changed: float) -> ShiftReading:
    psnrs = [10 * math.log10(4 / mse) if mse > 0 else None for mse in (error, unmoved)]
    gain = 10 * math.log10(unmoved / error) if error > 0 and unmoved > 0 else None
    return ShiftReading(state, shift, psnrs[0], psnrs[1], gain, changed)


# ------------------------------------------------------------------------------------------------ tokenizers as subjects


def open_subject(word: str, device: torch.device | str, assumed: Assumed | None = None) -> Subject:
    """A run folder of `bash run.sh tokenizer`, or a file of VQVAE weights with what is `assumed` of it (plain VAR, 256 px).

    Raises:
        UsageError: it is neither.
    """
    path = Path(word)
    if not path.exists():
        raise UsageError(f"{word} is neither a run folder nor a file of VQVAE weights; give an existing one.")
    tokenizer = open_tokenizer(path, device, assumed)
    for note in tokenizer.notes:
        print(f"note: {tokenizer.path}: {note}")
    if left := training_left(tokenizer):
        print(f"note: {left}")
    return vae_subject(word, tokenizer.vae)


def vae_subject(name: str, vae: FocusedVQVAE) -> Subject:
    """A focus-patched VQVAE, measured at the prefix of every state that serves a token scale.

    Raises:
        UsageError: its images are too small for borders of MARGIN pixels.
    """
    pyramid, sides = vae.focus_pyramid, vae.quantize.v_patch_nums
    if pyramid.image_size < 4 * MARGIN:
        raise UsageError(f"{name} is for {pyramid.image_size} px images; shifts need at least {4 * MARGIN} px.")
    of_scale = pyramid.states_of(sides)
    ends = [(k, end) for k, end in enumerate(pyramid.last_scale_of_state(sides)) if end is not None]

    def look(x: Tensor) -> Prefixes:
        targets = vae.encode_targets(x)
        q = vae.quantize.quantize([targets] * pyramid.states if isinstance(targets, Tensor) else targets)
        tokens = [torch.cat([idx for idx, of in zip(q.idx_S, of_scale, strict=True) if of == k], 1) for k, _ in ends]
        return Prefixes([decode_prefix(vae, q.f_hat_S[end], k) for k, end in ends], tokens)

    return Subject(
        name,
        pyramid.image_size,
        tuple(k + 1 for k, _ in ends),
        look,
        border=min(pyramid.stride, pyramid.image_size // 4),
    )
