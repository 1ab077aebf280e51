"""VectorQuantizer2 -> the same multi-scale residual quantizer, run against one target per focus state.

Shapes: K focus states, B batch, C = Cvae latent channels, h = w = n latent cells, S token scales. `T_K` is the list of
the K focus targets T_k = quant_conv(E(F_k)), each (B,C,h,w); a plain tensor `f_BChw` is one target for every state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as tdist
from torch.nn import functional as F

from patches.instance import InstancePatch
from refocus_ext.vector_quantization import code_hits, full_precision_matmul, straight_through

if TYPE_CHECKING:
    from refocus_ext.optics.pyramid import FocusPyramid


PatchNums = Sequence[int | tuple[int, int]]


class Step(NamedTuple):
    """One scale of the quantizer: its choice and the sum so far."""

    scale: int
    state: int  # index of the focus state whose target this scale follows
    rest_NC: Tensor  # (B*ph*pw, C) the pooled residual it quantizes
    idx_N: Tensor  # (B*ph*pw,) codebook indices
    h_BChw: Tensor  # phi(upsampled code vectors), this scale's addition to f_hat


class Quantized(NamedTuple):
    """The results of one pass for training; see `FocusQuantizer.quantize`."""

    f_hat_S: list[Tensor]  # S times (B,C,h,w): the prefix after each scale; gradients reach codebook and phi
    idx_S: list[Tensor]  # S times (B, pn*pn)
    residual_S: list[Tensor]  # S times (B*pn*pn, C): the pooled residuals that were quantized, no gradient
    commitment_S: list[Tensor]  # mse(sg f_hat, T_g(i)): reaches the encoder only
    codebook_S: list[Tensor]  # mse(f_hat, sg T_g(i)): reaches codebook and phi only


class FocusQuantizer(InstancePatch):
    """Modifications:
    - a list of K tensors is taken as the focus targets; scale i quantizes the residual against state g(i), and where
      the state changes T_new - T_old is added to the running residual
    - a single tensor is upstream's own case: token methods hand it to the stock code unchanged
    - `forward` needs no process group; its output and loss are stock's, bit for bit
    - codebook hits are counted in train mode, with or without a process group
    """

    host = "VectorQuantizer2"
    fingerprints = {"forward": "92e0924b07c9", "f_to_idxBl_or_fhat": "443e41eae296"}  # noqa: RUF012

    focus_pyramid: FocusPyramid
    # of the stock class
    vocab_size: int
    Cvae: int
    using_znorm: bool
    beta: float
    prog_si: int
    training: bool
    v_patch_nums: tuple[int, ...]
    record_hit: int
    ema_vocab_hit_SV: Tensor
    embedding: torch.nn.Embedding
    quant_resi: Any

    # ------------------------------------------------------------------ tokens

    def f_to_idxBl_or_fhat(
        self, f_BChw: Tensor | Sequence[Tensor], to_fhat: bool, v_patch_nums: PatchNums | None = None
    ) -> list[Tensor]:
        """Tokens (S times (B, pn*pn)) or prefixes f_hat (S times (B,C,h,w)) of a latent or a list of focus targets."""
        if isinstance(f_BChw, Tensor):
            return super().f_to_idxBl_or_fhat(f_BChw, to_fhat, v_patch_nums)  # type: ignore[misc]
        f_hat = torch.zeros_like(f_BChw[0])
        out = []
        for step in self._steps(f_BChw, v_patch_nums):
            f_hat.add_(step.h_BChw)
            out.append(f_hat.clone() if to_fhat else step.idx_N.view(f_hat.shape[0], -1))
        return out

    def _steps(self, T_K: Sequence[Tensor], v_patch_nums: PatchNums | None = None) -> Iterator[Step]:
        """Walks the scales from coarse to fine; the residual follows the focus target of each scale's state."""
        if len(T_K) != self.focus_pyramid.states:
            raise ValueError(
                f"{len(T_K)} focus targets were given; the pyramid has {self.focus_pyramid.states} states."
            )
        B, C, h, w = T_K[0].shape
        sizes = [(pn, pn) if isinstance(pn, int) else (pn[0], pn[1]) for pn in v_patch_nums or self.v_patch_nums]
        if sizes[-1] != (h, w):
            raise ValueError(f"the last token map is {sizes[-1]} cells but the latent is {(h, w)}; they must be equal.")
        states = [self.focus_pyramid.state_of_scale(size, latent=max(h, w)) for size in sizes]
        rest, state = T_K[states[0]].detach().clone(), states[0]
        for si, (size, new_state) in enumerate(zip(sizes, states, strict=True)):
            if 0 <= self.prog_si < si:  # upstream's progressive training
                return
            if T_K[new_state] is not T_K[state]:
                # Not T_new - f_hat: with equal targets that would differ from upstream's residual in the last bits.
                rest.add_(T_K[new_state].detach() - T_K[state].detach())
            state = new_state
            pooled = rest if si == len(sizes) - 1 else F.interpolate(rest, size=size, mode="area")
            rest_NC = pooled.permute(0, 2, 3, 1).reshape(-1, C)
            idx_N = self.nearest_code(rest_NC)
            h_BChw = self._lookup(idx_N.view(B, *size), (h, w), si, len(sizes))
            rest = rest - h_BChw.detach()
            yield Step(si, state, rest_NC, idx_N, h_BChw)

    def nearest_code(self, z_NC: Tensor) -> Tensor:
        """Index (N,) of the code nearest to each vector, in upstream's arithmetic: fp32, ties to the lowest index."""
        weight = self.embedding.weight.data
        with full_precision_matmul():
            if self.using_znorm:
                return torch.argmax(F.normalize(z_NC, dim=-1) @ F.normalize(weight.T, dim=0), dim=1)
            distance = torch.sum(z_NC.square(), dim=1, keepdim=True) + torch.sum(weight.square(), dim=1)
            return torch.argmin(distance.addmm_(z_NC, weight.T, alpha=-2, beta=1), dim=1)

    def _lookup(self, idx_Bhw: Tensor, latent: tuple[int, int], si: int, scales: int) -> Tensor:
        """phi(code vectors, bicubically upsampled to the latent's size): one scale's share of f_hat."""
        h_BChw = self.embedding(idx_Bhw).permute(0, 3, 1, 2)
        if si != scales - 1:
            h_BChw = F.interpolate(h_BChw, size=latent, mode="bicubic")
        return self.quant_resi[si / (scales - 1)](h_BChw.contiguous())

    # ------------------------------------------------------------------ training

    def quantize(self, T_K: Sequence[Tensor]) -> Quantized:
        """One training pass: prefixes, tokens and the per-scale terms of the VQ loss; hits are counted in train mode.

        Args:
            T_K: focus targets with gradient, fp32, K times (B,C,h,w).
        """
        B = T_K[0].shape[0]
        out = Quantized([], [], [], [], [])
        f_hat = torch.zeros_like(T_K[0])
        with torch.autocast(device_type=f_hat.device.type, enabled=False):
            for step in self._steps(T_K):
                target = T_K[step.state]
                f_hat = f_hat + step.h_BChw
                out.f_hat_S.append(f_hat)
                out.idx_S.append(step.idx_N.view(B, -1))
                out.residual_S.append(step.rest_NC)
                out.commitment_S.append(F.mse_loss(f_hat.detach(), target))
                out.codebook_S.append(F.mse_loss(f_hat, target.detach()))
        if self.training:
            self._count_hits(out.idx_S)
        return out

    def forward(
        self, f_BChw: Tensor | Sequence[Tensor], ret_usages: bool = False
    ) -> tuple[Tensor, list[float] | None, Tensor]:
        """Stock contract: (f_hat with straight-through gradient, usage in % per scale or None, VQ loss)."""
        T_K = (
            [f_BChw.float()] * self.focus_pyramid.states if isinstance(f_BChw, Tensor) else [f.float() for f in f_BChw]
        )
        result = self.quantize(T_K)
        vq_loss: Any = 0.0
        for commitment, codebook in zip(result.commitment_S, result.codebook_S, strict=True):
            vq_loss = vq_loss + (commitment * self.beta + codebook)
        f_hat = straight_through(result.f_hat_S[-1], T_K[-1])
        return f_hat, self.usages(f_hat) if ret_usages else None, vq_loss * (1.0 / len(self.v_patch_nums))

    @torch.no_grad()
    def _count_hits(self, idx_S: list[Tensor]) -> None:
        """Moving average of code hits per scale, over all processes.

        Upstream counts only under a process group, and its `record_hit` counts scales where this one counts steps.
        """
        hit_SV = torch.stack([code_hits(idx, self.vocab_size, torch.float32) for idx in idx_S])
        if tdist.is_available() and tdist.is_initialized():
            tdist.all_reduce(hit_SV)
        decay = 0.0 if self.record_hit == 0 else 0.9 if self.record_hit < 100 else 0.99
        self.ema_vocab_hit_SV[: len(hit_SV)].mul_(decay).add_(hit_SV, alpha=1 - decay)
        self.record_hit += 1

    def usages(self, f_BChw: Tensor) -> list[float]:
        """Percent of the codebook in use at each scale, by upstream's margin (8% of the hits of an even spread)."""
        world = tdist.get_world_size() if tdist.is_available() and tdist.is_initialized() else 1
        margin = world * (f_BChw.numel() / f_BChw.shape[1]) / self.vocab_size * 0.08
        return [(hits >= margin).float().mean().item() * 100 for hits in self.ema_vocab_hit_SV]
