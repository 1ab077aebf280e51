"""Sampling from a vanilla VAR: upstream's arithmetic, with one random generator for each image.

Upstream draws a whole batch from one generator, so an image depends on which others share its batch. Here image i has a
generator of its own, seeded from (seed, i): alone in a batch it is, to the bit, what upstream draws for that seed. In
larger batches matrix products may differ in the last bits. With one generator for the batch, the batch is upstream's.

Shapes: B images, l tokens of a scale, C width, V codes, Cvae latent channels, n side of the last token map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.sampling.student import Student
from refocus_ext.seeds import image_seed
from refocus_ext.vanilla_var.sampling import keep_top_k_, keep_top_p_

# Called after each scale with (scale, f_hat (B,Cvae,n,n)); f_hat must not be changed.
Watch = Callable[[int, Tensor], None]
# Given (scale, code vectors (B,Cvae,pn,pn)), the code vectors to go on with.
Exchange = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """How tokens are drawn; the defaults are those of upstream's demo notebook, made for single pictures.

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
        """The same for a codebook that may be smaller than `top_k`, which then keeps all."""
        return replace(self, top_k=min(self.top_k, codes))


FOR_FID = Guidance(cfg=1.5, top_p=0.96)  # DESIGN 6


class Noise:
    """Random numbers of a batch from one or several generators, each for an equal share of the images."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def draw(self, probability_BlV: Tensor) -> Tensor:
        """One code a token, (B,l)."""
        return torch.cat(
            [
                torch.multinomial(part.flatten(0, 1), 1, replacement=True, generator=own).view(part.shape[:2])
                for part, own in self._shares(probability_BlV)
            ]
        )

    def gumbel(self, like_BlV: Tensor) -> Tensor:
        """Standard Gumbel noise, (B,l,V)."""
        drawn = [torch.empty_like(part).exponential_(generator=own) for part, own in self._shares(like_BlV)]
        return torch.cat(drawn).log().neg()

    def _shares(self, values_B: Tensor) -> Iterator[tuple[Tensor, torch.Generator]]:
        return zip(values_B.chunk(len(self.generators)), self.generators, strict=True)


@contextlib.contextmanager
def kv_caches(var: Any) -> Iterator[None]:
    """Inside, the VAR's blocks keep keys and values; afterwards they are off and empty, also after an exception."""
    try:
        for block in var.blocks:
            block.attn.kv_caching(True)
        yield
    finally:
        for block in var.blocks:
            block.attn.kv_caching(False)


@torch.no_grad()
def sample(
    var: Any,
    label_B: Tensor,
    noise: Noise,
    how: Guidance,
    *,
    exchange: Exchange | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draws one image for each label, (B,3,H,W) in [0,1].

    Args:
        label_B: int64; the number of classes itself stands for no class.
        noise: one generator, or one for each image.
        exchange: may exchange each scale's code vectors before they are added to f_hat.
    """
    vae, scales, B = var.vae_proxy[0], len(var.patch_nums), len(label_B)
    cond_BD = var.class_emb(torch.cat((label_B, torch.full_like(label_B, var.num_classes))))
    place_1LC = var.lvl_embed(var.lvl_1L) + var.pos_1LC
    x_BLC = cond_BD.unsqueeze(1) + var.pos_start + place_1LC[:, : var.first_l]
    f_hat = cond_BD.new_zeros(B, var.Cvae, var.patch_nums[-1], var.patch_nums[-1])
    with kv_caches(var):
        for si, pn in enumerate(var.patch_nums):
            progress = si / (scales - 1)
            logits_BlV = _guided_logits(var, x_BLC, cond_BD, how.cfg * progress)
            h_BlC = _code_vectors(var, logits_BlV, noise, how, progress)
            h_BChw = h_BlC.transpose(1, 2).reshape(B, var.Cvae, pn, pn)
            if exchange is not None:
                h_BChw = exchange(si, h_BChw)
            f_hat, pooled = vae.quantize.get_next_autoregressive_input(si, scales, f_hat, h_BChw)
            if watch is not None:
                watch(si, f_hat)
            if si < scales - 1:
                begin, end = var.begin_ends[si + 1]
                x_BLC = (var.word_embed(pooled.flatten(2).transpose(1, 2)) + place_1LC[:, begin:end]).repeat(2, 1, 1)
    return to_unit(vae.fhat_to_img(f_hat).float())  # bf16 has too few steps between 0.5 and 1


def _guided_logits(var: Any, x_BLC: Tensor, cond_BD: Tensor, strength: float) -> Tensor:
    """(1 + t) guided - t unguided, (B,l,V): the first half of the batch has its class, the second none."""
    block_cond = var.shared_ada_lin(cond_BD)
    for block in var.blocks:
        x_BLC = block(x=x_BLC, cond_BD=block_cond, attn_bias=None)
    guided, unguided = var.get_logits(x_BLC, cond_BD).chunk(2)
    return (1 + strength) * guided - strength * unguided


def _code_vectors(var: Any, logits_BlV: Tensor, noise: Noise, how: Guidance, progress: float) -> Tensor:
    """Code vectors (B,l,Cvae) of drawn tokens, or mixtures of them; the filters change the logits in place."""
    if how.top_k:
        keep_top_k_(logits_BlV, how.top_k)
    if how.top_p:
        keep_top_p_(logits_BlV, how.top_p)
    # Drawn even where it is not used: upstream draws it, and what follows depends on the state of the generator.
    idx_Bl = noise.draw(logits_BlV.softmax(dim=-1))
    codebook = var.vae_quant_proxy[0].embedding
    if not how.smooth:
        return codebook(idx_Bl)
    tau = max(0.27 * (1 - progress * 0.95), 0.005)
    logits_BlV = logits_BlV * (1 + progress)
    return ((logits_BlV + noise.gumbel(logits_BlV)) / tau).softmax(dim=-1) @ codebook.weight.unsqueeze(0)


def to_unit(image: Tensor) -> Tensor:
    """[-1,1] -> [0,1]."""
    return image.add(1).mul(0.5)


# ------------------------------------------------------------------------------------------------ whole images


def image_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """The generator's seed of each image, from the run's seed and the image's number."""
    return [image_seed(seed, index) for index in indices]


def sample_images(
    student: Student,
    labels: Sequence[int],
    *,
    seed: int = 0,
    first: int = 0,
    how: Guidance | None = None,
    watch: Watch | None = None,
    exchange: Exchange | None = None,
) -> Tensor:
    """Images `first`, `first + 1`, ... of `seed`, one for each label: (B,3,H,W) in [0,1], float32.

    Each depends on its own number, label and seed alone (in a batch of another size, up to the last bits).
    """
    label_B = torch.tensor(labels, device=student.device)
    noise = Noise(image_seeds(seed, range(first, first + len(labels))), student.device)
    how = (how or Guidance()).for_codes(student.geometry.vocab_size)
    return sample(student.var, label_B, noise, how, watch=watch, exchange=exchange)


def sample_as_upstream(var: Any, labels: Sequence[int], *, seed: int = 0, how: Guidance | None = None) -> Tensor:
    """The batch that upstream's `autoregressive_infer_cfg` draws with `g_seed=seed`; leaves no KV cache behind.

    Args:
        var: a VAR in eval mode.

    Returns:
        (B,3,H,W) in [0,1], float32.
    """
    how = (how or Guidance()).for_codes(var.V)
    label_B = torch.tensor(labels, device=var.lvl_1L.device)
    try:
        image = var.autoregressive_infer_cfg(
            B=len(labels),
            label_B=label_B,
            g_seed=seed,
            cfg=how.cfg,
            top_k=how.top_k,
            top_p=how.top_p,
            more_smooth=how.smooth,
        )
    finally:  # upstream leaves its caches on if sampling raises
        for block in var.blocks:
            block.attn.kv_caching(False)
    return image.float()


class Prefixes:
    """A `Watch` that decodes the image after every scale: `images` is S times (B,3,H,W) in [0,1]."""

    def __init__(self, student: Student) -> None:
        self.vae, self.images = student.vae, list[Tensor]()

    def __call__(self, scale: int, f_hat: Tensor) -> None:
        self.images.append(to_unit(self.vae.fhat_to_img(f_hat).float()))


# ------------------------------------------------------------------------------------------------ editing


class KeptTokens:
    """An `Exchange` that keeps the tokens of an image in a region: teacher forcing of what is not to change.

    Args:
        idx_S: the image's token maps, S times (1, pn*pn).
        kept_nn: bool (n,n), the cells of the last token map that stay. Coarser cells stay where any part of them does,
            since their tokens are part of what the fine ones refine.
    """

    def __init__(self, student: Student, idx_S: Sequence[Tensor], kept_nn: Tensor) -> None:
        self.codebook, self.kept_nn = student.vae.quantize.embedding, kept_nn
        self.idx_S = idx_S

    def __call__(self, scale: int, h_BChw: Tensor) -> Tensor:
        pn = h_BChw.shape[-1]
        kept_h_1Chw = self.codebook(self.idx_S[scale]).transpose(1, 2).reshape(1, -1, pn, pn)
        return torch.where(kept_cells(self.kept_nn, pn), kept_h_1Chw.to(h_BChw.dtype), h_BChw)


def kept_cells(kept_nn: Tensor, pn: int) -> Tensor:
    """Which cells of a pn x pn token map stay: bool (pn,pn)."""
    share = F.adaptive_avg_pool2d(kept_nn[None].float(), pn)[0]
    return share > 0
