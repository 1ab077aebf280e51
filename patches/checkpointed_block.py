"""AdaLNSelfAttn -> the same block, with activations recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patches.instance import InstancePatch, Patch, PatchError, swap_class


class CheckpointedBlock(InstancePatch):
    """Modifications:
    - if a gradient is needed, the stock forward runs under activation checkpointing (random numbers repeated)
    """

    host = "AdaLNSelfAttn"
    fingerprints = {"forward": "a9dc8f618b4f"}  # noqa: RUF012

    checkpointed: bool

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        """Stock contract: (B,L,C) -> (B,L,C)."""
        stock = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return stock(x, cond_BD, attn_bias)
        return checkpoint(stock, x, cond_BD, attn_bias, use_reentrant=False)


class Checkpointed(Patch):
    """Activation checkpointing of a VAR's blocks, all but the last `keep`: `Checkpointed(keep=2).apply(var)`.

    Memory falls to one block's activations plus (B,L,C) per block, at the cost of one more forward pass; results are stock's.
    """

    def __init__(self, keep: int = 0) -> None:
        self.keep = keep

    def hosts(self, model: Any) -> Sequence[nn.Module]:
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise PatchError(f"Checkpointed patches a VAR; a {type(model).__name__} has no list of `blocks`.")
        return list(blocks)[: len(blocks) - self.keep]

    def apply(self, model: Any) -> None:
        for block in self.hosts(model):
            swap_class(block, CheckpointedBlock, checkpointed=True)
