"""Sampling from a VAR: upstream's arithmetic, with one random generator per image or one per batch.

Upstream draws a whole batch from one generator, so an image depends on the others in its batch. With its own generator, a
single image is bit-identical to upstream's for that seed; in larger batches matrix products may differ in the last bits.
With one generator per batch, the batch is upstream's.

Shapes: B images, l tokens of a scale, C width, V codes, Cvae latent channels, n side of the last token map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patches.protocols import VAR, device_of
from refocus_ext.token_filters import keep_top_k_, keep_top_p_

# Called after each scale with (scale, f_hat (B,Cvae,n,n)); f_hat must not be changed.
Watch = Callable[[int, Tensor], None]
# (scale, code vectors (B,Cvae,pn,pn)) -> the code vectors to use instead.
Exchange = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """How tokens are drawn; the defaults are those of upstream's demo notebook, for single pictures.

    Args:
        cfg: strength of classifier-free guidance at the last scale; it rises linearly from 0 at the first.
        top_k: codes kept for each token; 0 keeps all.
        top_p: probability kept for each token; 0 keeps all.
        smooth: mix code vectors by a Gumbel softmax instead of drawing one; smoother pictures, not for FID.
    """

    cfg: float = 4.0
    top_k: int = 900
    top_p: float = 0.95
    smooth: bool = False

    def for_codes(self, codes: int) -> Guidance:
        """The same settings for a codebook that may be smaller than `top_k`, in which case all codes are kept."""
        return replace(self, top_k=min(self.top_k, codes))


class Noise:
    """Random numbers of a batch from one or several generators, each for an equal share of the images."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # all probabilities so far

    def draw(self, probability_BlV: Tensor) -> Tensor:
        """One code per token, (B,l): bit for bit what `torch.multinomial` draws, which would make the host wait for a GPU twice
        for each generator."""
        self.finite &= probability_BlV.isfinite().all()
        race = torch.cat(
            [torch.empty_like(part).exponential_(generator=own) for part, own in self._shares(probability_BlV)]
        )
        return (probability_BlV / race).argmax(dim=-1)

    def gumbel(self, like_BlV: Tensor) -> Tensor:
        """Standard Gumbel noise, (B,l,V)."""
        drawn = [torch.empty_like(part).exponential_(generator=own) for part, own in self._shares(like_BlV)]
        return torch.cat(drawn).log().neg()

    def _shares(self, values_B: Tensor) -> Iterator[tuple[Tensor, torch.Generator]]:
        return zip(values_B.chunk(len(self.generators)), self.generators, strict=True)


@contextlib.contextmanager
def kv_caches(model: Any) -> Iterator[None]:
    """Inside, the VAR's blocks cache keys and values; afterwards caches are off and empty, also after an exception."""
    try:
        for block in model.blocks:
            block.attn.kv_caching(True)
        yield
    finally:
        drop_kv_caches(model)


def drop_kv_caches(model: Any) -> None:
    """Switches the blocks' KV caches off and empties them."""
    for block in model.blocks:
        block.attn.kv_caching(False)


@torch.no_grad()
def sample(
    model: VAR,
    label_B: Tensor,
    noise: Noise,
    guidance: Guidance,
    *,
    exchange: Exchange | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draws one image for each label, (B,3,H,W) in [0,1]; NaN where the probabilities of tokens are not finite, so that no host
    waits for the answer.

    Args:
        label_B: int64; num_classes stands for no class.
        noise: one generator, or one for each image; new ones for each call.
        exchange: may replace each scale's code vectors before they are added to f_hat.
    """
    var: Any = model
    vae, scales, B = var.vae_proxy[0], len(var.patch_nums), len(label_B)
    cond_BD = var.class_emb(torch.cat((label_B, torch.full_like(label_B, var.num_classes))))
    place_1LC = var.lvl_embed(var.lvl_1L) + var.pos_1LC
    x_BLC = cond_BD.unsqueeze(1) + var.pos_start + place_1LC[:, : var.first_l]
    f_hat = cond_BD.new_zeros(B, var.Cvae, var.patch_nums[-1], var.patch_nums[-1])
    with kv_caches(var):
        for si, pn in enumerate(var.patch_nums):
            progress = si / (scales - 1)
            logits_BlV = _guided_logits(var, x_BLC, cond_BD, guidance.cfg * progress)
            h_BlC = _code_vectors(var, logits_BlV, noise, guidance, progress)
            h_BChw = h_BlC.transpose(1, 2).reshape(B, var.Cvae, pn, pn)
            if exchange is not None:
                h_BChw = exchange(si, h_BChw)
            f_hat, pooled = vae.quantize.get_next_autoregressive_input(si, scales, f_hat, h_BChw)
            if watch is not None:
                watch(si, f_hat)
            if si < scales - 1:
                begin, end = var.begin_ends[si + 1]
                x_BLC = (var.word_embed(pooled.flatten(2).transpose(1, 2)) + place_1LC[:, begin:end]).repeat(2, 1, 1)
    image = to_unit(vae.fhat_to_img(f_hat).float())  # bf16 has too few steps between 0.5 and 1
    return image.where(noise.finite, float("nan"))


def _guided_logits(var: Any, x_BLC: Tensor, cond_BD: Tensor, strength: float) -> Tensor:
    """(1 + t) guided - t unguided, (B,l,V): the first half of the batch is conditional, the second unconditional."""
    block_cond = var.shared_ada_lin(cond_BD)
    for block in var.blocks:
        x_BLC = block(x=x_BLC, cond_BD=block_cond, attn_bias=None)
    guided, unguided = var.get_logits(x_BLC, cond_BD).chunk(2)
    return (1 + strength) * guided - strength * unguided


def _code_vectors(var: Any, logits_BlV: Tensor, noise: Noise, guidance: Guidance, progress: float) -> Tensor:
    """Code vectors (B,l,Cvae) of drawn tokens, or mixtures of them; the filters change the logits in place."""
    if guidance.top_k:
        keep_top_k_(logits_BlV, guidance.top_k)
    if guidance.top_p:
        keep_top_p_(logits_BlV, guidance.top_p)
    # Drawn even if unused, as upstream does: later draws depend on the state of the generator.
    idx_Bl = noise.draw(logits_BlV.softmax(dim=-1))
    codebook = var.vae_quant_proxy[0].embedding
    if not guidance.smooth:
        return codebook(idx_Bl)
    tau = max(0.27 * (1 - progress * 0.95), 0.005)
    logits_BlV = logits_BlV * (1 + progress)
    return ((logits_BlV + noise.gumbel(logits_BlV)) / tau).softmax(dim=-1) @ codebook.weight.unsqueeze(0)


def to_unit(image: Tensor) -> Tensor:
    """[-1,1] -> [0,1]."""
    return image.add(1).mul(0.5)


def sample_as_upstream(var: VAR, labels: Sequence[int], *, seed: int = 0, guidance: Guidance | None = None) -> Tensor:
    """The batch that upstream's `autoregressive_infer_cfg` draws with `g_seed=seed`; leaves no KV cache behind.

    Args:
        var: a VAR in eval mode.

    Returns:
        (B,3,H,W) in [0,1], float32.
    """
    guidance = (guidance or Guidance()).for_codes(var.V)
    label_B = torch.tensor(labels, device=device_of(var))
    try:
        image = var.autoregressive_infer_cfg(
            B=len(labels),
            label_B=label_B,
            g_seed=seed,
            cfg=guidance.cfg,
            top_k=guidance.top_k,
            top_p=guidance.top_p,
            more_smooth=guidance.smooth,
        )
    finally:  # upstream leaves its caches on if sampling raises
        drop_kv_caches(var)
    return image.float()
