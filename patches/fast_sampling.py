"""VAR's sampling steps without the work that every step repeats: AdaLN's projections and the growth of the KV cache.

Shapes: B batch (both halves of the guided one), H heads, L tokens so far, c channels a head.

Upstream projects the condition to AdaLN's vectors in every block at each of ten steps, though it never changes: a third
of the weights a step reads. Its KV cache is a new tensor at every step, concatenated from the old one and the new keys.
This patch projects once per batch of images and writes the keys into a buffer with room for all tokens. The products are
the same, so in fp32 on a CPU the images are bit-identical to upstream's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from patches.block_causal import project_qkv
from patches.instance import InstancePatch, Patch, PatchError, swap_class


class SamplingMemo:
    """Values that are constant over all steps of a batch of images; empty outside sampling.

    A projection is stored together with its input tensor, so it is never used for another condition.
    """

    def __init__(self) -> None:
        self.sampling = False
        self._made: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        self.sampling = True
        self._made.clear()

    def end(self) -> None:
        self.sampling = False
        self._made.clear()

    def project(self, module: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """`module(condition)`, cached per tensor while images are sampled."""
        if not self.sampling:
            return module(condition)
        assert isinstance(module, nn.Module)
        source, result = self._made.get(module, (None, None))
        if source is not condition or result is None:
            result = module(condition)
            self._made[module] = condition, result
        return result


class KVCache:
    """Keys and values of the tokens so far, in buffers (B,H,L,c) with room for all L of an image.

    Under autocast upstream keeps normalised keys in fp32 and attention casts them at every step; this class casts them once.
    """

    def __init__(self, value_BHLc: Tensor, tokens: int) -> None:
        B, H, _, c = value_BHLc.shape
        self.keys, self.values = value_BHLc.new_empty(2, B, H, tokens, c).unbind(0)
        self.length = 0

    def append(self, key_BHLc: Tensor, value_BHLc: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last; views of the buffers."""
        begin, self.length = self.length, self.length + key_BHLc.shape[2]
        self.keys[:, :, begin : self.length] = key_BHLc
        self.values[:, :, begin : self.length] = value_BHLc
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class FastSelfAttention(InstancePatch):
    """Modifications:
    - while sampling, keys and values go into a preallocated `KVCache`
    - with flash-attn or xformers installed, whose layout differs, and without a KV cache it is stock
    """

    host = "SelfAttention"
    fingerprints = {"forward": "e6958518ae5b", "kv_caching": "7683dc05a589"}  # noqa: RUF012

    sampling_memo: SamplingMemo
    sampling_tokens: int
    sampling_cache: KVCache | None
    # of the stock class
    training: bool
    caching: bool
    using_flash: bool
    using_xform: bool
    scale: float
    proj: nn.Linear
    proj_drop: nn.Module

    def kv_caching(self, enable: bool) -> None:
        """Starts an empty cache, or deletes it."""
        super().kv_caching(enable)  # type: ignore[misc]
        self.__dict__["sampling_cache"] = None
        if enable:
            self.sampling_memo.begin()
        else:
            self.sampling_memo.end()

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        """(B,l,C) -> (B,l,C), attending to all tokens so far."""
        stock_layout = self.using_flash or self.using_xform
        if not self.caching or stock_layout or attn_bias is not None or self.training:
            return super().forward(x, attn_bias)  # type: ignore[misc]
        B, L, C = x.shape
        query, key, value = project_qkv(self, x)
        if self.sampling_cache is None:
            self.__dict__["sampling_cache"] = KVCache(value, self.sampling_tokens)
        assert self.sampling_cache is not None
        keys, values = self.sampling_cache.append(key, value)
        out_BHLc = F.scaled_dot_product_attention(query, keys, values, scale=self.scale)
        return self.proj_drop(self.proj(out_BHLc.transpose(1, 2).reshape(B, L, C)))


class RememberedAdaLN(InstancePatch):
    """Modifications:
    - `ada_lin` projects a condition once per batch of sampled images; the forward pass that calls it is stock
    """

    host = "AdaLNSelfAttn"
    fingerprints = {"forward": "a9dc8f618b4f"}  # noqa: RUF012

    sampling_memo: SamplingMemo
    _modules: dict[str, nn.Module]

    @property
    def ada_lin(self) -> Callable[[Tensor], Tensor]:
        return partial(self.sampling_memo.project, self._modules["ada_lin"])


class RememberedHeadAdaLN(RememberedAdaLN):
    """Modifications: those of `RememberedAdaLN`, for the AdaLN before the head."""

    host = "AdaLNBeforeHead"
    fingerprints = {"forward": "e55d38a7fb42"}  # noqa: RUF012


class FastSampling(Patch):
    """Fast sampling as a patch of a VAR: `with patched(var, FastSampling()): var.autoregressive_infer_cfg(...)`.

    Training and teacher forcing are stock. Blocks that share one AdaLN projection (`shared_aln`) repeat little
    and stay stock.
    """

    def hosts(self, model: Any) -> Sequence[Any]:
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not hasattr(model, "head_nm"):
            raise PatchError(f"FastSampling patches a VAR; a {type(model).__name__} has no `blocks` with a head.")
        own_projection = [block for block in blocks if not block.shared_aln]
        return [*(block.attn for block in blocks), *own_projection, model.head_nm]

    def apply(self, model: Any) -> None:
        """
        Raises:
            PatchError: not a VAR, or upstream has drifted.
        """
        self.hosts(model)
        memo = SamplingMemo()
        for block in model.blocks:
            swap_class(block.attn, FastSelfAttention, sampling_memo=memo, sampling_tokens=model.L, sampling_cache=None)
            if not block.shared_aln:
                swap_class(block, RememberedAdaLN, sampling_memo=memo)
        swap_class(model.head_nm, RememberedHeadAdaLN, sampling_memo=memo)
