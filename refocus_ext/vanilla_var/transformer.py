"""The transformer's parts: attention with a KV cache, feed-forward network, AdaLN block, and the AdaLN before the head.

Shapes: B batch, L tokens, C width, D width of the condition, H heads, c = C/H. The AdaLN parameters of a block come as
six vectors: gamma (gate of the branch), scale and shift (of its normalised input), each for attention, then the FFN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[..., nn.Module]


class DropPath(nn.Module):
    """Stochastic depth: in train mode zeroes whole samples of a residual branch, and rescales the rest.

    Args:
        drop_prob: share of samples zeroed.
        scale_by_keep: divide the others by 1 - drop_prob, so that the mean stays.
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        kept = 1 - self.drop_prob
        gate = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(kept)
        return x * (gate / kept if self.scale_by_keep and kept > 0.0 else gate)


class FFN(nn.Module):
    """Two linear layers around a tanh-approximated GELU: (..., in) -> (..., out). `fused_if_available` is ignored."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        drop: float = 0.0,
        fused_if_available: bool = True,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        self.fused_mlp_func = None
        self.fc1 = nn.Linear(in_features, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, out_features or in_features)
        self.drop = nn.Dropout(drop) if drop > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.fc1(x))
        return self.drop(self.fc2(hidden))


class SelfAttention(nn.Module):
    """Multi-head self-attention by PyTorch's SDPA; `flash_if_available` is ignored.

    With `attn_l2_norm`, queries and keys are unit vectors and each head learns the scale of its logits, up to 100.
    Between `kv_caching(True)` and `kv_caching(False)` every call also attends to the tokens of the calls before.
    """

    zero_k_bias: Tensor

    def __init__(
        self,
        block_idx: int,
        embed_dim: int = 768,
        num_heads: int = 12,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_l2_norm: bool = False,
        flash_if_available: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads}).")
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.block_idx, self.attn_l2_norm, self.attn_drop = block_idx, attn_l2_norm, attn_drop
        self.using_flash = self.using_xform = False
        self.scale: float = 1.0 if attn_l2_norm else 0.25 / math.sqrt(self.head_dim)
        if attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), 4.0).log())
            self.max_scale_mul = torch.tensor(100.0).log().item()
        # One product for q, k and v; a bias on the keys would cancel in the softmax, so theirs is a constant zero.
        self.mat_qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.register_buffer("zero_k_bias", torch.zeros(embed_dim))
        self.proj = nn.Linear(embed_dim, out_features=embed_dim)
        self.proj_drop = nn.Dropout(proj_drop) if proj_drop > 0 else nn.Identity()
        self.kv_caching(False)

    def kv_caching(self, enable: bool) -> None:
        """Starts with an empty cache, or drops it."""
        self.caching = enable
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        """(B,L,C) -> (B,L,C); `attn_bias` (1,1,L,L) is added to the logits, -inf hides a token."""
        B, L, C = x.shape
        query, key, value = self._qkv(x)
        if self.caching:
            key, value = self._cached(key, value)
        dropout = self.attn_drop if self.training else 0.0
        out_BHLc = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_bias, dropout_p=dropout, scale=self.scale
        )
        return self.proj_drop(self.proj(out_BHLc.transpose(1, 2).reshape(B, L, C)))

    def _qkv(self, x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B,H,L,c)."""
        B, L, _ = x_BLC.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x_BLC, self.mat_qkv.weight, bias).view(B, L, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.attn_l2_norm:
            temperature = self.scale_mul_1H11.clamp_max(self.max_scale_mul).exp()
            query = F.normalize(query, dim=-1) * temperature
            key = F.normalize(key, dim=-1)
        return query, key, value

    def _cached(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all calls so far, this one's last."""
        if self.cached_k is not None and self.cached_v is not None:
            key, value = torch.cat((self.cached_k, key), dim=2), torch.cat((self.cached_v, value), dim=2)
        self.cached_k, self.cached_v = key, value
        return key, value


def modulated(norm: nn.Module, x_BLC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """AdaLN: norm(x) (1 + scale) + shift."""
    return (norm(x_BLC) * (scale + 1)).add_(shift)


def plain_norm(norm_layer: NormLayer, width: int) -> nn.Module:
    """A norm over `width` channels without weights: AdaLN's condition supplies scale and shift."""
    return norm_layer(width, elementwise_affine=False)


class AdaLNSelfAttn(nn.Module):
    """A transformer block whose norms are modulated and branches gated by the condition.

    With `shared_aln` the condition comes as the six vectors (B,1,6,C) that all blocks share, and the block learns
    offsets `ada_gss`; otherwise as (B,D), and the block has its own projection `ada_lin`. The two last options
    are ignored.
    """

    def __init__(
        self,
        block_idx: int,
        last_drop_p: float,
        embed_dim: int,
        cond_dim: int,
        shared_aln: bool,
        norm_layer: NormLayer,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        attn_l2_norm: bool = False,
        flash_if_available: bool = False,
        fused_if_available: bool = True,
    ) -> None:
        super().__init__()
        self.block_idx, self.last_drop_p = block_idx, last_drop_p
        self.C, self.D, self.shared_aln = embed_dim, cond_dim, shared_aln
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.attn = SelfAttention(block_idx, embed_dim, num_heads, attn_drop, drop, attn_l2_norm)
        self.ffn = FFN(embed_dim, round(embed_dim * mlp_ratio), drop=drop)
        self.ln_wo_grad = plain_norm(norm_layer, embed_dim)
        if shared_aln:
            offsets_116C = torch.randn(1, 1, 6, embed_dim) / embed_dim**0.5
            self.ada_gss = nn.Parameter(offsets_116C)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 6 * embed_dim))
        self.fused_add_norm_fn = None

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        """(B,L,C) -> (B,L,C); `cond_BD` is (B,D), or (B,1,6,C) with `shared_aln`; see `SelfAttention` for the bias."""
        gate_attn, gate_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn = self._modulation(cond_BD).unbind(2)
        branch = self.attn(modulated(self.ln_wo_grad, x, scale_attn, shift_attn), attn_bias=attn_bias)
        # In place here and not below: with fp32 gates under autocast this determines the dtype of the product.
        x = x + self.drop_path(branch.mul_(gate_attn))
        branch = self.ffn(modulated(self.ln_wo_grad, x, scale_ffn, shift_ffn))
        return x + self.drop_path(branch * gate_ffn)

    def _modulation(self, cond: Tensor) -> Tensor:
        """The six vectors, (B,1,6,C)."""
        return self.ada_gss + cond if self.shared_aln else self.ada_lin(cond).view(-1, 1, 6, self.C)


class AdaLNBeforeHead(nn.Module):
    """The last norm, modulated by the condition: (B,L,C), (B,D) -> (B,L,C)."""

    def __init__(self, C: int, D: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.C, self.D = C, D
        self.ln_wo_grad = plain_norm(norm_layer, C)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * C))

    def forward(self, x_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        modulation_B12C = self.ada_lin(cond_BD).view(-1, 1, 2, self.C)
        return modulated(self.ln_wo_grad, x_BLC, *modulation_B12C.unbind(2))
