"""VAR: a transformer that predicts the token maps of an image, from coarse to fine, all tokens of a map at once.

Shapes: B batch, S token scales of pn x pn tokens, l = pn*pn, L = sum of l, C width, D = C condition width, V codes,
Cvae latent channels, n = pn of the last scale.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from refocus_ext.vanilla_var.quantizer import VectorQuantizer2
from refocus_ext.vanilla_var.sampling import gumbel_softmax_with_rng, sample_with_top_k_top_p_
from refocus_ext.vanilla_var.transformer import AdaLNBeforeHead, AdaLNSelfAttn
from refocus_ext.vanilla_var.vqvae import VQVAE


class SharedAdaLin(nn.Linear):
    """The projection of the condition that all blocks share: (B,D) -> (B,1,6,C)."""

    def forward(self, cond_BD: Tensor) -> Tensor:
        return super().forward(cond_BD).view(-1, 1, 6, self.out_features // 6)


def truncated_normal(*shape: int, std: float) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), std=std)


def truncated_embedding(count: int, width: int, std: float) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.trunc_normal_(table.weight, std=std)
    return table


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matrix product of x has here: autocast's if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class VAR(nn.Module):
    """Class-conditional next-scale prediction over the tokens of `vae_local`, which is referenced, not owned.

    Args:
        vae_local: the tokenizer; `rng` and `uniform_prob` are made on its device.
        num_classes: labels 0 to num_classes - 1; num_classes itself stands for "no class".
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        shared_aln: one AdaLN projection for all blocks, see `AdaLNSelfAttn`.
        cond_drop_rate: share of labels replaced by "no class", in eval mode too.
        attn_l2_norm: see `SelfAttention`.
        patch_nums: pn of each scale.
        flash_if_available, fused_if_available: ignored.
    """

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(
        self,
        vae_local: VQVAE,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        cond_drop_rate: float = 0.1,
        attn_l2_norm: bool = False,
        patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        flash_if_available: bool = True,
        fused_if_available: bool = True,
    ) -> None:
        super().__init__()
        self.depth, self.num_heads, self.num_classes = depth, num_heads, num_classes
        self.C = self.D = embed_dim
        self.cond_drop_rate, self.drop_path_rate = cond_drop_rate, drop_path_rate
        self.prog_si = -1  # progressive training, which the stand-in does not support
        self._set_scales(patch_nums)
        self._refer_to(vae_local)
        # The order of what follows is that of the random numbers which initialise it.
        self._add_embeddings()
        layer_norm = partial(nn.LayerNorm, eps=norm_eps)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), SharedAdaLin(self.D, 6 * self.C)) if shared_aln else nn.Identity()
        )
        drop_paths = torch.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.ModuleList(
            AdaLNSelfAttn(
                block_idx=i,
                last_drop_p=drop_paths[i - 1] if i else 0,
                embed_dim=self.C,
                cond_dim=self.D,
                shared_aln=shared_aln,
                norm_layer=layer_norm,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_paths[i],
                attn_l2_norm=attn_l2_norm,
            )
            for i in range(depth)
        )
        self._add_scale_buffers()
        self.head_nm = AdaLNBeforeHead(self.C, self.D, layer_norm)
        self.head = nn.Linear(self.C, self.V)

    def _set_scales(self, patch_nums: Sequence[int]) -> None:
        ends = list(accumulate((pn * pn for pn in patch_nums), initial=0))
        self.patch_nums = patch_nums
        self.begin_ends = list(pairwise(ends))
        self.first_l, self.L = ends[1], ends[-1]
        self.num_stages_minus_1 = len(patch_nums) - 1

    def _refer_to(self, vae: VQVAE) -> None:
        device = next(vae.parameters()).device
        self.Cvae, self.V = vae.Cvae, vae.vocab_size
        # Tuples hide them from nn.Module, so that the tokenizer's weights stay out of this state dict.
        self.vae_proxy: tuple[VQVAE] = (vae,)
        self.vae_quant_proxy: tuple[VectorQuantizer2] = (vae.quantize,)
        self.rng = torch.Generator(device=device)
        self.uniform_prob = torch.full((1, self.num_classes), 1.0 / self.num_classes, device=device)

    def _add_embeddings(self) -> None:
        code_width, std = self.Cvae, math.sqrt(1 / self.C / 3)
        self.word_embed = nn.Linear(code_width, self.C)
        self.class_emb = truncated_embedding(self.num_classes + 1, self.C, std)
        self.pos_start = nn.Parameter(truncated_normal(1, self.first_l, self.C, std=std))
        positions = [truncated_normal(1, pn * pn, self.C, std=std) for pn in self.patch_nums]
        self.pos_1LC = nn.Parameter(torch.cat(positions, dim=1))
        self.lvl_embed = truncated_embedding(len(self.patch_nums), self.C, std)

    def _add_scale_buffers(self) -> None:
        """The scale of each token, and the mask by which a token sees its own and all coarser scales."""
        sizes = torch.tensor([pn * pn for pn in self.patch_nums])
        scale_L = torch.arange(len(sizes)).repeat_interleave(sizes)
        hidden_LL = scale_L[:, None] < scale_L[None, :]
        self.register_buffer("lvl_1L", scale_L[None])
        self.register_buffer(
            "attn_bias_for_masking", torch.zeros(hidden_LL.shape).masked_fill_(hidden_LL, -torch.inf)[None, None]
        )

    # ------------------------------------------------------------------ initial weights

    @torch.no_grad()
    def init_weights(
        self,
        init_adaln: float = 0.5,
        init_adaln_gamma: float = 1e-5,
        init_head: float = 0.02,
        init_std: float = 0.02,
    ) -> None:
        """Redraws all linear and embedding weights, zeroes the biases, then scales the parts that start small.

        Args:
            init_adaln: gain of AdaLN's scales and shifts.
            init_adaln_gamma: gain of AdaLN's gates.
            init_head: gain of the head; negative leaves the head as drawn.
            init_std: standard deviation; negative takes sqrt(1/(3C)).
        """
        std = (1 / self.C / 3) ** 0.5 if init_std < 0 else init_std
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        if init_head >= 0:
            self.head.weight.mul_(init_head)
        cast(nn.Linear, self.head_nm.ada_lin[-1]).weight.mul_(init_adaln)
        for block in self._layers():
            self._shrink(block, init_adaln, init_adaln_gamma)

    def _shrink(self, block: AdaLNSelfAttn, adaln: float, gamma: float) -> None:
        """Residual branches by 1/sqrt(2 depth); AdaLN's two gates by `gamma`, its scales and shifts by `adaln`."""
        for branch_out in (block.attn.proj, block.ffn.fc2):
            branch_out.weight.div_(math.sqrt(2 * self.depth))
        if block.shared_aln:
            gates, others = block.ada_gss.split((2, 4), dim=2)
        else:
            gates, others = cast(nn.Linear, block.ada_lin[-1]).weight.split((2 * self.C, 4 * self.C))
        gates.mul_(gamma)
        others.mul_(adaln)

    # ------------------------------------------------------------------ pieces

    def _layers(self) -> Iterator[AdaLNSelfAttn]:
        yield from cast(Sequence[AdaLNSelfAttn], self.blocks)

    def _start_tokens(self, cond_BD: Tensor) -> Tensor:
        """The input of the first scale (B,first_l,C): the condition, told apart by position."""
        shape = (len(cond_BD), self.first_l, self.C)
        return cond_BD.unsqueeze(1).expand(shape) + self.pos_start.expand(shape)

    def get_logits(self, h_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        """Logits (B,L,V) in fp32 of the last block's output."""
        return self.head(self.head_nm(h_BLC.float(), cond_BD).float()).float()

    # ------------------------------------------------------------------ teacher forcing

    def forward(self, label_B: Tensor, x_BLCv_wo_first_l: Tensor) -> Tensor:
        """Logits (B,L,V) of all scales at once.

        Args:
            label_B: class labels (B,); some are dropped at random, see `cond_drop_rate`.
            x_BLCv_wo_first_l: (B, L - first_l, Cvae), from `VectorQuantizer2.idxBl_to_var_input`.
        """
        if self.prog_si >= 0:
            raise NotImplementedError(
                f"prog_si is {self.prog_si}, but the stand-in has no progressive training; leave it at -1 or fetch the "
                "submodule var_upstream."
            )
        B = len(x_BLCv_wo_first_l)
        # Upstream turns off CUDA's autocast and no other device's.
        with torch.autocast("cuda", enabled=False):
            dropped = torch.rand(B, device=label_B.device) < self.cond_drop_rate
            cond_BD = self.class_emb(label_B.masked_fill(dropped, self.num_classes))
            x_BLC = torch.cat((self._start_tokens(cond_BD), self.word_embed(x_BLCv_wo_first_l.float())), dim=1)
            x_BLC = x_BLC + (self.lvl_embed(self.lvl_1L.expand(B, -1)) + self.pos_1LC)
        dtype = matmul_dtype(x_BLC)
        block_cond = self.shared_ada_lin(cond_BD).to(dtype)
        x_BLC, attn_bias = x_BLC.to(dtype), self.attn_bias_for_masking.to(dtype)
        for block in self.blocks:
            x_BLC = block(x=x_BLC, cond_BD=block_cond, attn_bias=attn_bias)
        return self.get_logits(x_BLC.float(), cond_BD)

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        B: int,
        label_B: int | Tensor | None,
        g_seed: int | None = None,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        more_smooth: bool = False,
    ) -> Tensor:
        """Samples B images (B,3,16n,16n) in [0,1]. KV caches are dropped afterwards, also after an exception.

        Args:
            label_B: labels (B,), or one for all; negative: no class; None: drawn uniformly.
            g_seed: seeds `rng` for this call; None takes the global generator.
            cfg: classifier-free guidance at the last scale; it rises linearly from 0 at the first.
            top_k, top_p: see `sample_with_top_k_top_p_`.
            more_smooth: mix the codes by a Gumbel softmax instead of drawing one; for pictures, not for FID.
        """
        rng = None if g_seed is None else self.rng.manual_seed(g_seed)
        label_B = self._labels(B, label_B, rng)
        no_class_B = torch.full_like(label_B, self.num_classes)
        cond_BD = self.class_emb(torch.cat((label_B, no_class_B)))  # guided samples first, unguided second: 2B
        place_1LC = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        x_BLC = self._start_tokens(cond_BD) + place_1LC[:, : self.first_l]
        n, quantizer = self.patch_nums[-1], self.vae_quant_proxy[0]
        f_hat = cond_BD.new_zeros(B, self.Cvae, n, n)
        with self._kv_caches():
            for si, pn in enumerate(self.patch_nums):
                progress = si / self.num_stages_minus_1
                logits_BlV = self._guided_logits(x_BLC, cond_BD, cfg * progress)
                idx_Bl = sample_with_top_k_top_p_(logits_BlV, top_k, top_p, rng)[:, :, 0]
                h_BlC = self._mixed_codes(logits_BlV, progress, rng) if more_smooth else quantizer.embedding(idx_Bl)
                h_BChw = h_BlC.transpose(1, 2).reshape(B, self.Cvae, pn, pn)
                f_hat, pooled = quantizer.get_next_autoregressive_input(si, len(self.patch_nums), f_hat, h_BChw)
                if si < self.num_stages_minus_1:
                    begin, end = self.begin_ends[si + 1]
                    next_BlC = self.word_embed(pooled.flatten(2).transpose(1, 2)) + place_1LC[:, begin:end]
                    x_BLC = next_BlC.repeat(2, 1, 1)
        return self.vae_proxy[0].fhat_to_img(f_hat).add_(1).div_(2)  # from [-1,1]

    def _labels(self, B: int, label: int | Tensor | None, rng: torch.Generator | None) -> Tensor:
        if label is None:
            return torch.multinomial(self.uniform_prob, B, replacement=True, generator=rng).reshape(B)
        if isinstance(label, int):
            return torch.full((B,), label if label >= 0 else self.num_classes, device=self.lvl_1L.device)
        return label

    @contextlib.contextmanager
    def _kv_caches(self) -> Iterator[None]:
        try:
            for block in self._layers():
                block.attn.kv_caching(True)
            yield
        finally:
            for block in self._layers():
                block.attn.kv_caching(False)

    def _guided_logits(self, x_BLC: Tensor, cond_BD: Tensor, strength: float) -> Tensor:
        """One scale's logits (B,l,V): (1 + t) guided - t unguided, from the two halves of the batch (2B)."""
        block_cond = self.shared_ada_lin(cond_BD)
        for block in self.blocks:
            x_BLC = block(x=x_BLC, cond_BD=block_cond, attn_bias=None)
        guided, unguided = self.get_logits(x_BLC, cond_BD).chunk(2)
        return (1 + strength) * guided - strength * unguided

    def _mixed_codes(self, logits_BlV: Tensor, progress: float, rng: torch.Generator | None) -> Tensor:
        """Code vectors (B,l,Cvae) averaged by a Gumbel softmax that sharpens from the first scale to the last."""
        tau = max(0.27 * (1 - progress * 0.95), 0.005)
        weights_BlV = gumbel_softmax_with_rng(logits_BlV * (1 + progress), tau=tau, rng=rng)
        return weights_BlV @ self.vae_quant_proxy[0].embedding.weight.unsqueeze(0)
