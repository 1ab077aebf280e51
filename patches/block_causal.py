"""SelfAttention -> block-causal attention of VAR's training pass, without the dense mask.

Shapes: B batch, H heads, L tokens, c channels per head. A token of scale i attends to all tokens of the scales up to i.
The queries of one scale see all keys of its prefix, so a call per scale needs no mask: upstream's one
call over L x L pairs (with an additive mask, which also rules out the flash kernel) becomes a few calls that together
touch 62% of the pairs at VAR's ten scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patches.instance import InstancePatch, Patch, PatchError, swap_class

GROUPS = 5


class Group(NamedTuple):
    """Consecutive scales whose queries share one call: tokens begin..end; masked if they are more than one scale."""

    begin: int
    end: int
    masked: bool


def scale_groups(begin_ends: Sequence[tuple[int, int]], groups: int | None = None) -> tuple[Group, ...]:
    """Splits the scales into calls: the first scales, which are small, share one; the others have one each.

    Args:
        begin_ends: first token and end of each scale, as `VAR.begin_ends`.
        groups: largest number of calls; None is one per scale, 1 is upstream's single masked call.

    Raises:
        ValueError: fewer than one group.
    """
    if groups is not None and groups < 1:
        raise ValueError(f"attention needs at least one group, got {groups}.")
    scales = len(begin_ends)
    shared = 1 if groups is None else max(1, scales - groups + 1)
    head = Group(begin_ends[0][0], begin_ends[shared - 1][1], masked=shared > 1)
    return (head, *(Group(begin, end, masked=False) for begin, end in begin_ends[shared:]))


def block_causal_attention(
    q_BHLc: Tensor, k_BHLc: Tensor, v_BHLc: Tensor, mask: Tensor, groups: Sequence[Group], scale: float
) -> Tensor:
    """softmax(scale q k^T + mask) v by groups, (B,L,H,c); of the additive `mask` (1,1,L,L) only masked groups' parts
    are read."""
    queries = q_BHLc.split([group.end - group.begin for group in groups], dim=2)
    out: list[Tensor] = []
    # From the longest prefix to the shortest, each a view of the one before: the backward pass then pads each prefix's
    # gradient to the next longer one instead of to all L tokens.
    for group, query in zip(reversed(groups), reversed(queries), strict=True):
        k_BHLc, v_BHLc = k_BHLc[:, :, : group.end], v_BHLc[:, :, : group.end]
        part = mask[:, :, group.begin : group.end, : group.end] if group.masked else None
        attended = F.scaled_dot_product_attention(query, k_BHLc, v_BHLc, attn_mask=part, scale=scale)
        out.append(attended.transpose(1, 2))
    return torch.cat(out[::-1], dim=1)


def project_qkv(attention: Any, x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a SelfAttention, (B,H,L,c) each, as upstream makes them."""
    B, L, _ = x_BLC.shape
    bias = torch.cat((attention.q_bias, attention.zero_k_bias, attention.v_bias))
    qkv = F.linear(x_BLC, attention.mat_qkv.weight, bias).view(B, L, 3, attention.num_heads, attention.head_dim)
    q_BHLc, k_BHLc, v_BHLc = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if attention.attn_l2_norm:
        temperature = attention.scale_mul_1H11.clamp_max(attention.max_scale_mul).exp()
        q_BHLc, k_BHLc = F.normalize(q_BHLc, dim=-1) * temperature, F.normalize(k_BHLc, dim=-1)
    return q_BHLc, k_BHLc, v_BHLc


class BlockCausalSelfAttention(InstancePatch):
    """Modifications:
    - the teacher-forced pass (a mask, no KV cache) attends by groups of scales; the mask must be the full one
    - sampling, which has no mask, is stock
    """

    host = "SelfAttention"
    fingerprints = {"forward": "e6958518ae5b"}  # noqa: RUF012

    block_causal_groups: tuple[Group, ...]
    # of the stock class
    training: bool
    caching: bool
    attn_drop: float
    scale: float
    proj: nn.Linear
    proj_drop: nn.Module

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        """(B,L,C) -> (B,L,C); `attn_bias` (1,1,L,L) is None while sampling.

        Raises:
            ValueError: the mask or the sequence is not that of all scales (progressive training), or dropout is on.
        """
        if attn_bias is None or self.caching:
            return super().forward(x, attn_bias)  # type: ignore[misc]
        self._check(x, attn_bias)
        B, L, C = x.shape
        out = block_causal_attention(*project_qkv(self, x), attn_bias, self.block_causal_groups, self.scale)
        return self.proj_drop(self.proj(out.reshape(B, L, C)))

    def _check(self, x: Tensor, attn_bias: Tensor) -> None:
        L = self.block_causal_groups[-1].end
        if attn_bias.shape != (1, 1, L, L) or x.shape[1] != L:
            raise ValueError(
                f"block-causal attention needs all {L} tokens and their mask (1, 1, {L}, {L}); it got {x.shape[1]} tokens "
                f"and a mask {tuple(attn_bias.shape)} (progressive training needs the dense mask)."
            )
        if self.training and self.attn_drop > 0:
            raise ValueError(f"block-causal attention has no dropout; attn_drop is {self.attn_drop}.")


class BlockCausal(Patch):
    """Block-causal attention as a patch of a VAR: `with patched(var, BlockCausal()): var(label, x)`.

    Args:
        groups: largest number of attention calls per block; None is one per scale. See `scale_groups`.

    Raises:
        ValueError: fewer than one group.
    """

    def __init__(self, groups: int | None = GROUPS) -> None:
        scale_groups([(0, 1)], groups)
        self.groups = groups

    def hosts(self, model: Any) -> Sequence[Any]:
        attentions = [block.attn for block in getattr(model, "blocks", ()) if hasattr(block, "attn")]
        if not attentions or not hasattr(model, "begin_ends"):
            raise PatchError(f"BlockCausal patches a VAR; a {type(model).__name__} has no self-attention in `blocks`.")
        return attentions

    def apply(self, model: Any) -> None:
        """
        Raises:
            PatchError: not a VAR, or a VAR with attention dropout or a mask that is not block-causal.
        """
        attentions = self.hosts(model)
        groups = scale_groups(model.begin_ends, self.groups)
        if dropping := [attn for attn in attentions if attn.attn_drop > 0]:
            raise PatchError(f"BlockCausal has no dropout; this VAR has attn_drop_rate {dropping[0].attn_drop}.")
        if not torch.equal(model.attn_bias_for_masking, _block_causal_mask(model)):
            raise PatchError("this VAR's attn_bias_for_masking is not block-causal over its patch_nums.")
        for attention in attentions:
            swap_class(attention, BlockCausalSelfAttention, block_causal_groups=groups)


def _block_causal_mask(model: Any) -> Tensor:
    """The mask that calls without one assume: 0 where the key's scale is no later than the query's, else -inf."""
    mask = torch.full_like(model.attn_bias_for_masking, -torch.inf)
    for begin, end in model.begin_ends:
        mask[:, :, begin:end, :end] = 0
    return mask
