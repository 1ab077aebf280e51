"""The structure tokenizer's training objective : what one step computes, and what a validation measures.

Shapes: x_B3HW images in [-1,1]; K focus states, index k = 0 the most blurred; S token scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

from patches.protocols import FocusedVQVAE
from refocus_ext.optics.pyramid import alias_views
from refocus_ext.tokenizer.alias.tokenizer import AliasOutput, AliasTokenizer
from refocus_ext.tokenizer.recipe import StructureWeights
from refocus_ext.vector_quantization import straight_through


@dataclass
class StructureOutput:
    """Loss of a step and what the loop reads: terms (detached), tokens per scale, pooled residuals per scale."""

    loss: Tensor
    recon: Tensor  # pixel loss on the sharp image, with gradient: the reference for the adaptive weight
    image: Tensor  # the sharp reconstruction, with gradient: input of LPIPS and the discriminator
    terms: dict[str, Tensor]
    idx_S: list[Tensor]
    residual_S: list[Tensor]


class StructureObjective(nn.Module):
    """One training step of a focus-patched VQVAE: `forward(x, state, quantize)` -> StructureOutput.

    Args:
        vae: a VQVAE patched with `patches.Focus`, in train mode.
    """

    def __init__(self, vae: FocusedVQVAE, weights: StructureWeights) -> None:
        super().__init__()
        self.vae: FocusedVQVAE = vae
        self.weights, self.pyramid = weights, vae.focus_pyramid
        self.last_scale = self.pyramid.last_scale_of_state(vae.quantize.v_patch_nums)

    def forward(self, x_B3HW: Tensor, state: int, quantize: bool = True) -> StructureOutput:
        """
        Args:
            state: the focus state whose prefix and anchor this step decodes.
            quantize: False during the autoencoder warm-up, which trains the unquantized anchors only.
        """
        return self._quantized(x_B3HW, state) if quantize else self._autoencoder(x_B3HW, state)

    def pixel_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """l1 |.| + l2 |.|^2, means over everything."""
        return self.weights.l1 * F.l1_loss(image, target) + self.weights.l2 * F.mse_loss(image, target)

    def _autoencoder(self, x: Tensor, state: int) -> StructureOutput:
        sharp = len(self.last_scale) - 1
        views = self.pyramid.structure_views(x, training=self.training)
        image = self.vae.decode(self.vae.encode_view(views[sharp])).float()
        loss = self.pixel_loss(image, self.pyramid.structure_view(x, sharp))
        terms = {"recon": loss}
        if state != sharp and self.pyramid.refocuses and self.weights.anchor:
            decoded = self.vae.decode(self.vae.encode_view(views[state])).float()
            terms["anchor"] = self.pixel_loss(decoded, self.pyramid.structure_view(x, state))
            loss = loss + self.weights.anchor * terms["anchor"]
        return StructureOutput(
            loss + self._all_take_part(),
            terms["recon"],
            image,
            {name: term.detach() for name, term in terms.items()},
            [],
            [],
        )

    def _quantized(self, x: Tensor, state: int) -> StructureOutput:
        own_K = self._latents(x)
        T_K = [self.vae.expand(latent) for latent in own_K]
        q = self.vae.quantize.quantize(T_K)
        decoded = self.vae.decode(straight_through(q.f_hat_S[-1], T_K[-1])).float()
        commitment, codebook = torch.stack(q.commitment_S), torch.stack(q.codebook_S)
        terms = {"recon": self.pixel_loss(decoded, x)}
        if self.pyramid.refocuses:  # plain VAR has neither term
            terms |= self._focus_terms(x, own_K[state], T_K[state], q.f_hat_S, state)
        loss = terms["recon"] + (self.weights.commitment * commitment + codebook).mean()
        loss = loss + self.weights.prefix * terms.get("prefix", 0) + self.weights.anchor * terms.get("anchor", 0)
        if self.weights.consistency and self.pyramid.refocuses:
            terms["consistency"] = latent_consistency(own_K)
            loss = loss + self.weights.consistency * terms["consistency"]
        loss = loss + self._all_take_part()
        terms |= {"commitment": commitment.mean(), "codebook": codebook.mean()}
        return StructureOutput(
            loss, terms["recon"], decoded, {name: term.detach() for name, term in terms.items()}, q.idx_S, q.residual_S
        )

    def _latents(self, x: Tensor) -> list[Tensor]:
        """fp32 latents of the K states at the size of their views; K times the same one without refocusing."""
        if not self.pyramid.refocuses:
            return [self.vae.encode_view(x).float()] * self.pyramid.states
        return [latent.float() for latent in self.vae.encode_states(x)]

    def _all_take_part(self) -> Tensor | float:
        """Zero; DistributedDataParallel needs a gradient for every parameter, and with few scales some phi are unused."""
        if not (tdist.is_available() and tdist.is_initialized()):
            return 0.0
        return 0 * torch.stack([parameter.sum() for parameter in self.vae.quantize.parameters()]).sum()

    def _focus_terms(
        self, x: Tensor, own: Tensor, T: Tensor, f_hat_S: Sequence[Tensor], state: int
    ) -> dict[str, Tensor]:
        """Prefix: the image decoded from the state's tokens against F_k. Anchor: D(T_k) against F_k; without it the commitment
        loss would reward a constant T_k. Both at the size of the state's view, as is `own`, T_k before it is upsampled. A term of
        weight 0 is left out."""
        focused, terms = self.pyramid.structure_view(x, state), {}
        if self.weights.anchor:
            terms["anchor"] = self.pixel_loss(self.vae.decode(own).float(), focused)
        scale = self.last_scale[state]
        # the sharp state's prefix is the reconstruction itself
        if self.weights.prefix and scale is not None and scale != len(f_hat_S) - 1:
            prefix = f_hat_S[scale].detach()
            if self.weights.prefix_trains == "all":
                prefix = straight_through(f_hat_S[scale], T, self.vae.quantize.v_patch_nums[scale])
            terms["prefix"] = self.pixel_loss(self.vae.decode_state(prefix, state).float(), focused)
        return terms


def latent_consistency(own_K: Sequence[Tensor]) -> Tensor:
    """How far the states' latents disagree: |T_k - pool(T_k+1)|^2 / |T_k+1|^2 at the smaller one's size, mean over neighbours.

    A scale-equivariant autoencoder has equal latents there (EQ-VAE, Kouzelis et al., 2025, asks the same of its decoder). Its
    denominator has no gradient: latents cannot lower it by growing.

    Args:
        own_K: latents at the sizes of their views, K times (B,C,n_k,n_k), n_k not falling.
    """
    ratios = []
    for small, large in itertools.pairwise(own_K):
        pooled = F.adaptive_avg_pool2d(large, (small.shape[-2], small.shape[-1]))
        ratios.append((small - pooled).square().mean() / large.detach().square().mean())
    return torch.stack(ratios).mean() if ratios else own_K[0].new_zeros(())


class TokenizerObjective(nn.Module):
    """Both tokenizers in one module, so that DistributedDataParallel sees one forward per step.

    They share only the image (and, in the ablation, the codebook): the structure tokenizer is bit-identical with and
    without the alias tokenizer.
    """

    def __init__(self, structure: StructureObjective, alias: AliasTokenizer | None) -> None:
        super().__init__()
        self.structure, self.alias = structure, alias

    def forward(
        self, x_B3HW: Tensor, state: int, *, quantize: bool, train_alias: bool
    ) -> tuple[StructureOutput, AliasOutput | None]:
        """
        Args:
            state: the focus state whose prefix and anchor this step decodes.
            quantize: False during the autoencoder warm-up.
            train_alias: False until a shared codebook is initialized.
        """
        out = self.structure(x_B3HW, state, quantize)
        if self.alias is None:
            return out, None
        if not train_alias:
            out.loss = out.loss + self._take_part()
            return out, None
        return out, self.alias(alias_views(self.structure.pyramid, x_B3HW))

    def _take_part(self) -> Tensor | float:
        """Zero; DistributedDataParallel needs a gradient for every parameter."""
        if self.alias is None or not (tdist.is_available() and tdist.is_initialized()):
            return 0.0
        return 0 * torch.stack([parameter.sum() for parameter in self.alias.parameters()]).sum()
