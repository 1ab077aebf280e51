"""Codebooks that live: initialisation from data, counting of use, revival of dead codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.engine.distributed import World
from refocus_ext.vector_quantization import kmeans


@torch.no_grad()
def initialise_codebook(quantizer: Any, T_K: Sequence[Tensor], generator: torch.Generator) -> None:
    """Fills the codebook from focus targets: scale by scale, k-means of the residual that the codes so far leave.

    Each scale gets codes in proportion to the square root of its tokens, so that the few tokens of the coarse scales,
    which every later scale builds on, are not starved. phi is taken for the identity, as `init_vae_weights` leaves it.

    Args:
        quantizer: a focus-patched VectorQuantizer2.
        T_K: focus targets of a sample of images, K times (N,C,n,n).
    """
    sizes, latent = quantizer.v_patch_nums, T_K[0].shape[-1]
    states = quantizer.focus_pyramid.states_of(sizes)
    weights = torch.tensor([float(pn) for pn in sizes])  # sqrt(pn * pn)
    ends = (quantizer.vocab_size * weights.cumsum(0) / weights.sum()).round().long().tolist()
    rest, state, filled = T_K[states[0]].clone(), states[0], 0
    table = quantizer.embedding.weight.data
    for pn, new_state, end in zip(sizes, states, ends, strict=True):
        rest, state = rest + (T_K[new_state] - T_K[state]), new_state
        pooled = rest if pn == latent else F.interpolate(rest, size=(pn, pn), mode="area")
        points = pooled.permute(0, 2, 3, 1).reshape(-1, rest.shape[1])
        if end > filled:
            table[filled:end] = kmeans(points, end - filled, generator)
            filled = end
        codes = table[:filled][torch.cdist(points, table[:filled]).argmin(1)].view(len(rest), pn, pn, -1)
        chosen = codes.permute(0, 3, 1, 2)
        rest = rest - (chosen if pn == latent else F.interpolate(chosen, size=(latent, latent), mode="bicubic"))


class CodeRevival:
    """Counts which codes are used; those unused since the last revival become residuals of the current batch.

    Args:
        quantizer: its codebook is changed in place.
        margin: a code with at most this many hits since the last revival is dead.
    """

    def __init__(self, quantizer: Any, margin: int = 0) -> None:
        self.quantizer, self.margin = quantizer, margin
        self.hits_V = torch.zeros(quantizer.vocab_size, dtype=torch.long)

    def count(self, idx_S: Sequence[Tensor]) -> None:
        for idx in idx_S:
            self.hits_V += idx.flatten().bincount(minlength=len(self.hits_V)).cpu()

    @torch.no_grad()
    def revive(
        self,
        residual_S: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        world: World | None = None,
    ) -> Tensor:
        """Replaces the dead codes, clears their optimizer moments and starts counting anew; returns their indices.

        Args:
            generator: must be in the same state on every process of `world`; rank 0 lends the new vectors.
        """
        if world is not None:
            self.hits_V = world.sum(self.hits_V)
        dead = (self.hits_V <= self.margin).nonzero().flatten()
        self.hits_V.zero_()
        pool = torch.cat(list(residual_S))
        if len(dead) > len(pool) // 2:  # a batch can lend only so many distinct vectors
            dead = dead[torch.randperm(len(dead), generator=generator)[: len(pool) // 2]]
        weight = self.quantizer.embedding.weight
        picks = torch.randperm(len(pool), generator=generator)[: len(dead)].to(pool.device)
        lent = pool[picks].to(weight.dtype)
        weight.data[dead.to(weight.device)] = lent if world is None else world.broadcast(lent.contiguous())
        for moment in optimizer.state.get(weight, {}).values():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                moment[dead.to(weight.device)] = 0
        return dead

    def state_dict(self) -> dict[str, Tensor]:
        return {"hits_V": self.hits_V.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.hits_V.copy_(state["hits_V"])
