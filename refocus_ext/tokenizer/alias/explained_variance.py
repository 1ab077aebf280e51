"""The share of A_k's variance that its tokens explain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from refocus_ext.tokenizer.alias.geometry import STRIDES

WEAK = 0.10  # a state below this explained variance is warned of


class ExplainedVariance:
    """EV_k = 1 - sum (A_k - A_hat_k)^2 / sum (A_k - mean)^2 over a set given in batches; mean is the mean colour of the set.

    1 is a perfect reconstruction, 0 the best single colour, below 0 worse than that; nan for a set without variance.
    Sums are in float64 on the CPU; `sums` (K-1, 8) can be added over processes.
    """

    def __init__(self, alias_states: int) -> None:
        self.sums = torch.zeros(alias_states, 8, dtype=torch.float64)  # sum of A, 3 colours; of A^2, 3; errors; pixels

    @torch.no_grad()
    def update(self, alias_K: Sequence[Tensor], recon_K: Sequence[Tensor]) -> None:
        """Adds a batch of views and their reconstructions, K-1 times (B, 3, H_k, H_k) each."""
        for row, A, A_hat in zip(self.sums, alias_K, recon_K, strict=True):
            A, A_hat = A.double(), A_hat.double()
            error, pixels = (A - A_hat).square().sum(), A.new_tensor(A.numel() / A.shape[1])
            row += torch.cat([A.sum((0, 2, 3)), A.square().sum((0, 2, 3)), error[None], pixels[None]]).cpu()

    def compute(self) -> list[float]:
        """EV_k of all batches so far."""
        first, second, error, pixels = self.sums.split([3, 3, 1, 1], dim=1)
        variance_K = (second - first.square() / pixels.clamp_min(1)).sum(1)
        # on a constant set the sums cancel only to a relative error of about 1e-12
        empty = variance_K <= 1e-9 * second.sum(1)
        return (1 - error.squeeze(1) / variance_K).masked_fill(empty, math.nan).tolist()


# ------------------------------------------------------------------------------------------------ explained variance


def _variance(A_BCHW: Tensor) -> Tensor:
    """Mean square about the mean colour of the set, ()."""
    return (A_BCHW - A_BCHW.mean((0, 2, 3), keepdim=True)).square().mean()


def explained_warnings(explained_K: Sequence[float], stride: int) -> list[str]:
    """One sentence for each alias state that explains under a tenth of its variance; states count from 1."""
    remedy = f"use --alias-stride {stride // 2}" if stride > min(STRIDES) else "use more alias codes"
    return [
        f"alias state {k + 1} explains {100 * explained:.0f}% of its variance, under {100 * WEAK:.0f}%: its tokens "
        f"carry little information for the teacher; train longer or {remedy}"
        for k, explained in enumerate(explained_K)
        if explained < WEAK
    ]
