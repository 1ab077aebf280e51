"""Alias-gate cross-attention (eq. 9-11) and the embedding E_a of the alias tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refocus_ext.distill.teacher.geometry import TeacherGeometry

MEAN_BATCHES = 100  # batches that the running mean of E_a averages over


class EmbeddedAliases(NamedTuple):
    """The inputs of AG-XAttn from the alias tokens of a batch."""

    key_BTC: Tensor  # E_a
    value_BTC: Tensor  # E_a minus its mean over images, or (`values` "whole") E_a


class AliasEmbedding(nn.Module):
    """E_a: LayerNorm(W [code vector, position] + state embedding), (B,T,C) of K-1 code vector maps (B,l_k,Ca).

    The norm has no parameters; it makes the attention logits independent of the scale of the codebook.

    Values are E_a minus its running mean over images, per position, so that the teacher adds only what differs between
    images; docs/measured.md has the measurements. The mean is updated by `follow`, never by `forward`.
    """

    position_TF: Tensor
    state_T: Tensor
    mean_TC: Tensor
    batches: Tensor

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        self.tokens, self.centred = geometry.tokens, geometry.values == "centred"
        frequencies = max(geometry.grids)
        self.project = nn.Linear(geometry.code_dim + 4 * frequencies, geometry.width)
        self.state = nn.Embedding(len(geometry.grids), geometry.width)
        nn.init.trunc_normal_(self.state.weight, std=0.02)
        position_TF = torch.cat([cell_positions(grid, frequencies) for grid in geometry.grids])
        self.register_buffer("position_TF", position_TF, persistent=False)
        state_T = torch.arange(len(geometry.grids)).repeat_interleave(torch.tensor(geometry.tokens))
        self.register_buffer("state_T", state_T, persistent=False)
        self.register_buffer("mean_TC", torch.zeros(len(state_T), geometry.width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, alias_K: Sequence[Tensor]) -> EmbeddedAliases:
        alias_BTC = self.embedded(alias_K)
        return EmbeddedAliases(alias_BTC, alias_BTC - self.mean_TC if self.centred else alias_BTC)

    def embedded(self, alias_K: Sequence[Tensor]) -> Tensor:
        """E_a, (B,T,C)."""
        found = tuple(alias.shape[1] for alias in alias_K)
        if found != self.tokens:
            raise ValueError(f"alias maps of {found} tokens were given; this teacher was built for {self.tokens}")
        code_BTC = torch.cat(list(alias_K), dim=1).detach()
        position_BTF = self.position_TF.to(code_BTC.dtype).expand(code_BTC.shape[0], -1, -1)
        embedded_BTC = self.project(torch.cat((code_BTC, position_BTF), dim=-1)) + self.state(self.state_T)
        return F.layer_norm(embedded_BTC, embedded_BTC.shape[-1:])

    @torch.no_grad()
    def mean(self, alias_K: Sequence[Tensor]) -> Tensor:
        """(T,C), the mean of E_a over a batch."""
        return self.embedded(alias_K).mean(0)

    @torch.no_grad()
    def follow(self, mean_TC: Tensor, unless: Tensor | None = None) -> None:
        """Adds one batch mean: a plain average over the first `MEAN_BATCHES`, then an exponential one.

        Args:
            unless: a bool tensor (); if it is set nothing changes.
        """
        batches = self.batches + 1
        followed_TC = self.mean_TC + (mean_TC - self.mean_TC) * (1 / batches.clamp(max=MEAN_BATCHES))
        if unless is not None:
            batches, followed_TC = (
                torch.where(unless, self.batches, batches),
                torch.where(unless, self.mean_TC, followed_TC),
            )
        self.batches.copy_(batches)
        self.mean_TC.copy_(followed_TC)


class AliasGateCrossAttention(nn.Module):
    """Z = X + gate(X) * W_O Attn(W_Q X, W_K E_a(a), W_V (E_a(a) - mean)), where X is read through a LayerNorm.

    gate = sigmoid(linear), in [0,1]^C, initially 1/2. W_O starts at zero and has no bias. A null slot with a learned
    key and a zero value takes the attention of a query with no match. A query that sees no alias token gives it all its
    attention and is returned unchanged.
    """

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        C, inner = geometry.width, geometry.inner
        self.heads = geometry.heads
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.to_gate = nn.Linear(C, C)
        self.to_q = nn.Linear(C, inner, bias=False)
        self.to_k = nn.Linear(C, inner, bias=False)
        self.to_v = nn.Linear(C, inner, bias=False)
        self.to_out = nn.Linear(inner, C, bias=False)
        self.null_key = nn.Parameter(torch.zeros(inner))
        nn.init.zeros_(self.to_gate.weight)
        nn.init.zeros_(self.to_gate.bias)
        nn.init.zeros_(self.to_out.weight)

    def gate(self, x_BLC: Tensor) -> Tensor:
        """(B,L,C) in [0,1]."""
        return self.to_gate(self.norm(x_BLC)).sigmoid()

    def forward(self, x_BLC: Tensor, aliases: EmbeddedAliases, visible_LN: Tensor) -> Tensor:
        """(B,L,C) -> (B,L,C). `visible_LN` (L,1+T) is bool, the null slot first and always True."""
        seen_BLC = self.norm(x_BLC)
        q, k, v = self.to_q(seen_BLC), self.to_k(aliases.key_BTC), self.to_v(aliases.value_BTC)
        B = x_BLC.shape[0]
        k = torch.cat((self.null_key.to(k.dtype).expand(B, 1, -1), k), dim=1)
        v = torch.cat((v.new_zeros(B, 1, v.shape[-1]), v), dim=1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        out_BHLc = F.scaled_dot_product_attention(q, k, v, attn_mask=visible_LN)
        update_BLC = self.to_gate(seen_BLC).sigmoid() * self.to_out(out_BHLc.transpose(1, 2).flatten(2))
        return x_BLC + update_BLC.to(x_BLC.dtype)


def cell_positions(grid: int, frequencies: int) -> Tensor:
    """(grid^2, 4 frequencies): sin and cos of pi m u, m = 1 .. frequencies, of each cell's centre u = (x, y) in (0,1)^2.

    Coordinates are those of the image: cells of two grids at the same place have the same position. With as many
    frequencies as the finest grid has cells, any function of a row or a column is linear in them (the cosines are the DCT).
    """
    centre_g = (torch.arange(grid) + 0.5) / grid
    phase_gm = math.pi * centre_g[:, None] * torch.arange(1, frequencies + 1)
    wave_gf = torch.cat((phase_gm.sin(), phase_gm.cos()), dim=1)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat((wave_gf[x.flatten()], wave_gf[y.flatten()]), dim=1)
