"""Prefixes of images against their focus states: what the tokens up to each state decode to, and its quality.

Shapes: K focus states, S token scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from patches.protocols import FocusedVQVAE
from refocus_ext.vector_quantization import codebook_use_of


@dataclass(frozen=True)
class PrefixReport:
    """Per focus state, means over images: PSNR of its prefix against F_k and against x (dB), and tokens' usage.

    `usage_S` and `perplexity_S` are per token scale, `usage_K` per focus state: percent of the codebook seen, and exp of
    the entropy of the codes. `tokens_S` is the number of tokens seen of each scale, an upper bound of the usage.

    With views smaller than the image there are also `psnr_upstream_K`, the same prefixes against F_k decoded at the image's
    size, as upstream does, and `disagreement`, |T_k - T_k+1| / |T_k+1|, the mean over images and neighbouring states.
    """

    psnr_focus_K: list[float]
    psnr_sharp_K: list[float]
    usage_S: list[float]
    perplexity_S: list[float]
    usage_K: list[float]
    tokens_S: list[int]
    psnr_upstream_K: list[float] | None = None
    disagreement: float | None = None

    def collapsed(self, vocab_size: int) -> list[str]:
        """One sentence for each collapsed scale."""
        return [
            f"scale {s} has collapsed: its {self.tokens_S[s - 1]} tokens have a perplexity of {self.perplexity_S[s - 1]:.1f} with "
            f"{vocab_size} codes"
            for s in self.collapsed_scales(vocab_size)
        ]

    def collapsed_scales(self, vocab_size: int) -> list[int]:
        """Numbers (from 1) of the scales whose perplexity is under a twentieth of the possible maximum."""
        rows = enumerate(zip(self.perplexity_S, self.tokens_S, strict=True), start=1)
        return [
            s
            for s, (perplexity, tokens) in rows
            if tokens >= 16 and perplexity < max(1.5, 0.05 * min(vocab_size, tokens))
        ]

    def flat(self) -> dict[str, float]:
        """Scalars for the log; states are numbered from 1, as in the paper."""
        rows: dict[str, float] = {}
        for k, (focus, sharp) in enumerate(zip(self.psnr_focus_K, self.psnr_sharp_K, strict=True), start=1):
            rows |= {f"psnr_prefix{k}_F{k}": focus, f"psnr_prefix{k}_x": sharp}
        for s, (usage, perplexity) in enumerate(zip(self.usage_S, self.perplexity_S, strict=True), start=1):
            rows |= {f"usage_scale{s}": usage, f"perplexity_scale{s}": perplexity}
        if self.psnr_upstream_K is not None:
            rows |= {f"psnr_upstream_prefix{k}_F{k}": value for k, value in enumerate(self.psnr_upstream_K, start=1)}
        if self.disagreement is not None:
            rows["latent_disagreement"] = self.disagreement
        return rows | {f"usage_state{k}": usage for k, usage in enumerate(self.usage_K, start=1)}


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image, dB, for values in [-1,1] (peak 2), (B,)."""
    mse = (image.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-10))


@torch.no_grad()
def prefixes(vae: FocusedVQVAE, x_B3HW: Tensor) -> list[Tensor]:
    """The image of each focus state's prefix, K times (B,3,H,W): the tokens up to the last scale the state serves."""
    targets = vae.encode_targets(x_B3HW)
    return decode_prefixes(vae, vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=True))


@torch.no_grad()
def decode_prefixes(vae: FocusedVQVAE, f_hat_S: Sequence[Tensor]) -> list[Tensor]:
    """Like `prefixes`, but from the quantizer's f_hat after each scale, (B,C,n,n)."""
    scales = vae.focus_pyramid.last_scale_of_state(vae.quantize.v_patch_nums)
    return [decode_prefix(vae, f_hat_S[-1 if scale is None else scale], k) for k, scale in enumerate(scales)]


@torch.no_grad()
def decode_prefix(vae: FocusedVQVAE, f_hat_BCnn: Tensor, state: int) -> Tensor:
    """The image (B,3,H,W) of a state's prefix, in [-1,1]; decoded at the size of the state's view, then bicubic."""
    return at_full_size(vae, vae.decode_state(f_hat_BCnn, state)).clamp_(-1, 1)


def at_full_size(vae: FocusedVQVAE, image_B3HW: Tensor) -> Tensor:
    """A decoded view, upsampled bicubically to the image's size where it is smaller."""
    size = vae.focus_pyramid.image_size
    return (
        image_B3HW if image_B3HW.shape[-1] == size else F.interpolate(image_B3HW.float(), (size, size), mode="bicubic")
    )


@torch.no_grad()
def validate(vae: FocusedVQVAE, batches: Iterable[Tensor]) -> PrefixReport:
    """Measures prefixes and code usage over image batches with the model in eval mode (restored afterwards)."""
    training, pyramid = vae.training, vae.focus_pyramid
    vae.eval()
    smaller = any(view != 1 for view in pyramid.subsampling)
    focus, sharp, idx, upstream, apart = [], [], [], [], []
    for x in batches:
        targets = vae.encode_targets(x)
        f_hat_S = vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=True)
        images = decode_prefixes(vae, f_hat_S)
        if smaller:
            upstream.append(_decoded_at_image_size(vae, f_hat_S, x))
            apart.append(_disagreement([targets] if isinstance(targets, Tensor) else targets))
        focus.append(torch.stack([psnr(image, pyramid.focused(x, k)) for k, image in enumerate(images)]))
        sharp.append(torch.stack([psnr(image, x) for image in images]))
        idx.append([tokens.flatten() for tokens in vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=False)])
    vae.train(training)
    codes = vae.quantize.vocab_size
    idx_S = [torch.cat(tokens) for tokens in zip(*idx, strict=True)]
    health = [codebook_use_of(tokens, codes) for tokens in idx_S]
    states = pyramid.states_of(vae.quantize.v_patch_nums)
    by_state = [[t for t, state in zip(idx_S, states, strict=True) if state == k] for k in range(pyramid.states)]
    return PrefixReport(
        psnr_focus_K=torch.cat(focus, dim=1).mean(1).tolist(),
        psnr_sharp_K=torch.cat(sharp, dim=1).mean(1).tolist(),
        usage_S=[usage for usage, _ in health],
        perplexity_S=[perplexity for _, perplexity in health],
        usage_K=[codebook_use_of(torch.cat(parts), codes)[0] if parts else 0.0 for parts in by_state],
        tokens_S=[len(tokens) for tokens in idx_S],
        psnr_upstream_K=torch.cat(upstream, dim=1).mean(1).tolist() if upstream else None,
        disagreement=torch.cat(apart).mean().item() if apart else None,
    )


def _decoded_at_image_size(vae: FocusedVQVAE, f_hat_S: Sequence[Tensor], x: Tensor) -> Tensor:
    """PSNR against F_k of every prefix decoded as upstream does, at the image's size, (K,B)."""
    pyramid = vae.focus_pyramid
    ends = enumerate(pyramid.last_scale_of_state(vae.quantize.v_patch_nums))
    last = [(k, f_hat_S[-1 if scale is None else scale]) for k, scale in ends]
    return torch.stack([psnr(vae.decode(f_hat), pyramid.focused(x, k)) for k, f_hat in last])


def _disagreement(T_K: Sequence[Tensor]) -> Tensor:
    """|T_k - T_k+1| / |T_k+1| of each image, the mean over neighbouring states, (B,)."""
    pairs = itertools.pairwise(target.flatten(1) for target in T_K)
    return torch.stack([(small - large).norm(dim=1) / large.norm(dim=1) for small, large in pairs]).mean(0)
