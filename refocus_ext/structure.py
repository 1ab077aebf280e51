"""The structure tokenizer's training objective (DESIGN 2): what one step computes, and what a validation measures.

Shapes: x_B3HW images in [-1,1]; K focus states, index k = 0 the most blurred; S token scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

from patches.focus_quantizer import straight_through


@dataclass(frozen=True)
class StructureWeights:
    """Weights of the terms; `commitment` is beta of the VQ loss."""

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    prefix: float = 1.0
    anchor: float = 1.0


@dataclass
class StructureOutput:
    """Loss of a step and what the loop looks at: terms (detached), tokens per scale, pooled residuals per scale."""

    loss: Tensor
    recon: Tensor  # its pixel loss on the sharp image, with gradient: what an adversarial loss is weighed against
    image: Tensor  # the sharp reconstruction, with gradient: what LPIPS and the discriminator see
    terms: dict[str, Tensor]
    idx_S: list[Tensor]
    residual_S: list[Tensor]


class StructureObjective(nn.Module):
    """One training step of a focus-patched VQVAE: `forward(x, state, quantize)` -> StructureOutput.

    Args:
        vae: a VQVAE patched with `patches.Focus`, in train mode.
    """

    def __init__(self, vae: Any, weights: StructureWeights) -> None:
        super().__init__()
        self.vae: Any = vae
        self.weights, self.pyramid = weights, vae.focus_pyramid
        self.last_scale = self.pyramid.last_scale_of_state(vae.quantize.v_patch_nums)

    def forward(self, x_B3HW: Tensor, state: int, quantize: bool = True) -> StructureOutput:
        """
        Args:
            state: the focus state whose prefix and anchor this step decodes.
            quantize: False for the autoencoder warm-up: the unquantized anchors alone.
        """
        return self._quantized(x_B3HW, state) if quantize else self._autoencoder(x_B3HW, state)

    def pixel_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """l1 |.| + l2 |.|^2, means over everything."""
        return self.weights.l1 * F.l1_loss(image, target) + self.weights.l2 * F.mse_loss(image, target)

    def _autoencoder(self, x: Tensor, state: int) -> StructureOutput:
        sharp = len(self.last_scale) - 1
        views = self.pyramid.structure_views(x, training=self.training)
        terms, image = {}, x
        for name, k in (("recon", sharp), ("anchor", state)):
            if name == "recon" or (k != sharp and self.pyramid.refocuses):
                latent = self.vae.encode_view(views[k])
                decoded = self.vae.decode(latent).float()
                terms[name] = self.pixel_loss(decoded, self.pyramid.focused(x, k))
                image = decoded if name == "recon" else image
        loss = torch.stack(list(terms.values())).sum()
        return StructureOutput(
            loss + self._all_take_part(),
            terms["recon"],
            image,
            {name: term.detach() for name, term in terms.items()},
            [],
            [],
        )

    def _quantized(self, x: Tensor, state: int) -> StructureOutput:
        targets = self.vae.encode_targets(x)
        T_K = [targets.float()] * self.pyramid.states if isinstance(targets, Tensor) else [T.float() for T in targets]
        q = self.vae.quantize.quantize(T_K)
        decoded = self.vae.decode(straight_through(q.f_hat_S[-1], T_K[-1])).float()
        commitment, codebook = torch.stack(q.commitment_S), torch.stack(q.codebook_S)
        terms = {"recon": self.pixel_loss(decoded, x)}
        if self.pyramid.refocuses:  # plain VAR trains neither
            terms |= self._focus_terms(x, T_K[state], q.f_hat_S, state)
        loss = terms["recon"] + (self.weights.commitment * commitment + codebook).mean()
        loss = loss + self.weights.prefix * terms.get("prefix", 0) + self.weights.anchor * terms.get("anchor", 0)
        loss = loss + self._all_take_part()
        terms |= {"commitment": commitment.mean(), "codebook": codebook.mean()}
        return StructureOutput(
            loss, terms["recon"], decoded, {name: term.detach() for name, term in terms.items()}, q.idx_S, q.residual_S
        )

    def _all_take_part(self) -> Tensor | float:
        """Zero; DistributedDataParallel wants a gradient of every parameter, and few scales leave some phi unused."""
        if not (tdist.is_available() and tdist.is_initialized()):
            return 0.0
        return 0 * torch.stack([parameter.sum() for parameter in self.vae.quantize.parameters()]).sum()

    def _focus_terms(self, x: Tensor, T: Tensor, f_hat_S: Sequence[Tensor], state: int) -> dict[str, Tensor]:
        """Prefix: what the state's tokens say of F_k. Anchor: D(T_k) against F_k, or commitment rewards a constant T_k."""
        focused = self.pyramid.focused(x, state)
        terms = {"anchor": self.pixel_loss(self.vae.decode(T).float(), focused)}
        scale = self.last_scale[state]
        if scale is not None and scale != len(f_hat_S) - 1:  # the sharp state's prefix is the reconstruction itself
            pn = self.vae.quantize.v_patch_nums[scale]
            prefix = straight_through(f_hat_S[scale], T, pn)
            terms["prefix"] = self.pixel_loss(self.vae.decode(prefix).float(), focused)
        return terms


# ------------------------------------------------------------------------------------------------ validation


@dataclass(frozen=True)
class PrefixReport:
    """Per focus state, means over images: PSNR of its prefix against F_k and against x (dB), and tokens' usage.

    `usage_S` and `perplexity_S` are per token scale, `usage_K` per focus state: percent of the codebook seen, and exp of
    the entropy of the codes. `tokens_S` is how many tokens of each scale were seen: no usage can exceed it.
    """

    psnr_focus_K: list[float]
    psnr_sharp_K: list[float]
    usage_S: list[float]
    perplexity_S: list[float]
    usage_K: list[float]
    tokens_S: list[int]

    def collapsed(self, vocab_size: int) -> list[str]:
        """One sentence for each scale whose tokens say next to nothing: perplexity under a twentieth of what it could be."""
        rows = enumerate(zip(self.perplexity_S, self.tokens_S, strict=True), start=1)
        return [
            f"scale {s} has collapsed: {tokens} tokens spread over {perplexity:.1f} codes' worth (perplexity) of {vocab_size}"
            for s, (perplexity, tokens) in rows
            if tokens >= 16 and perplexity < max(1.5, 0.05 * min(vocab_size, tokens))
        ]

    def flat(self) -> dict[str, float]:
        """As scalars for a log; states are numbered from 1, as in the paper."""
        rows: dict[str, float] = {}
        for k, (focus, sharp) in enumerate(zip(self.psnr_focus_K, self.psnr_sharp_K, strict=True), start=1):
            rows |= {f"psnr_prefix{k}_F{k}": focus, f"psnr_prefix{k}_x": sharp}
        for s, (usage, perplexity) in enumerate(zip(self.usage_S, self.perplexity_S, strict=True), start=1):
            rows |= {f"usage_scale{s}": usage, f"perplexity_scale{s}": perplexity}
        return rows | {f"usage_state{k}": usage for k, usage in enumerate(self.usage_K, start=1)}


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image, dB, for values in [-1,1] (peak 2), (B,)."""
    mse = (image.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-10))


@torch.no_grad()
def prefixes(vae: Any, x_B3HW: Tensor) -> list[Tensor]:
    """The image of each focus state's prefix, K times (B,3,H,W): the tokens up to the last scale the state serves."""
    targets = vae.encode_targets(x_B3HW)
    return decode_prefixes(vae, vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=True))


@torch.no_grad()
def decode_prefixes(vae: Any, f_hat_S: Sequence[Tensor]) -> list[Tensor]:
    """As `prefixes`, from the quantizer's f_hat after each scale, (B,C,n,n)."""
    scales = vae.focus_pyramid.last_scale_of_state(vae.quantize.v_patch_nums)
    return [vae.decode(f_hat_S[-1 if scale is None else scale]).clamp_(-1, 1) for scale in scales]


@torch.no_grad()
def validate(vae: Any, batches: Iterable[Tensor]) -> PrefixReport:
    """Measures prefixes and code usage over image batches with the model in eval mode (restored afterwards)."""
    training, pyramid = vae.training, vae.focus_pyramid
    vae.eval()
    focus, sharp, idx = [], [], []
    for x in batches:
        targets = vae.encode_targets(x)
        images = decode_prefixes(vae, vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=True))
        focus.append(torch.stack([psnr(image, pyramid.focused(x, k)) for k, image in enumerate(images)]))
        sharp.append(torch.stack([psnr(image, x) for image in images]))
        idx.append([tokens.flatten() for tokens in vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=False)])
    vae.train(training)
    codes = vae.quantize.vocab_size
    idx_S = [torch.cat(tokens) for tokens in zip(*idx, strict=True)]
    health = [code_health(tokens, codes) for tokens in idx_S]
    states = pyramid.states_of(vae.quantize.v_patch_nums)
    by_state = [[t for t, state in zip(idx_S, states, strict=True) if state == k] for k in range(pyramid.states)]
    return PrefixReport(
        psnr_focus_K=torch.cat(focus, dim=1).mean(1).tolist(),
        psnr_sharp_K=torch.cat(sharp, dim=1).mean(1).tolist(),
        usage_S=[usage for usage, _ in health],
        perplexity_S=[perplexity for _, perplexity in health],
        usage_K=[code_health(torch.cat(parts), codes)[0] if parts else 0.0 for parts in by_state],
        tokens_S=[len(tokens) for tokens in idx_S],
    )


def code_health(idx: Tensor, vocab_size: int) -> tuple[float, float]:
    """(percent of codes seen, perplexity) of a set of tokens."""
    share = idx.bincount(minlength=vocab_size).float() / idx.numel()
    entropy = -(share * share.clamp_min(1e-12).log()).sum().item()
    return 100 * (share > 0).float().mean().item(), math.exp(entropy)
