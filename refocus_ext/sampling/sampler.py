"""Images of a student: each from its own random generator, in batches, optionally keeping tokens or recording prefixes.

Shapes: B images, Cvae latent channels, n side of the last token map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from patches.sampling import Exchange, Guidance, Noise, Watch, sample, to_unit
from refocus_ext.sampling.student import Student
from refocus_ext.seeds import image_seed

FOR_FID = Guidance(cfg=1.5, top_p=0.96)  # as VAR's published FID


def for_pictures(*, demo: bool) -> Guidance:
    """The guidance of single pictures: VAR's own; weaker for a demo's student, some of whose samples fall apart at cfg 4."""
    return Guidance(cfg=1.5) if demo else Guidance()


# ------------------------------------------------------------------------------------------------ whole images


def image_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """The generator seed of each image, from the run's seed and the image's number."""
    return [image_seed(seed, index) for index in indices]


def sample_images(
    student: Student,
    labels: Sequence[int],
    *,
    seed: int = 0,
    first: int = 0,
    guidance: Guidance | None = None,
    watch: Watch | None = None,
    exchange: Exchange | None = None,
) -> Tensor:
    """Images `first`, `first + 1`, ... of `seed`, one for each label: (B,3,H,W) in [0,1], float32.

    Each depends only on its number, label and seed (with another batch size, up to the last bits).
    """
    label_B = torch.tensor(labels, device=student.device)
    noise = Noise(image_seeds(seed, range(first, first + len(labels))), student.device)
    guidance = (guidance or Guidance()).for_codes(student.geometry.vocab_size)
    return sample(student.var, label_B, noise, guidance, watch=watch, exchange=exchange)


class Prefixes:
    """A `Watch` that decodes the image after every scale: `images` is S times (B,3,H,W) in [0,1]."""

    def __init__(self, student: Student) -> None:
        self.vae, self.images = student.vae, list[Tensor]()

    def __call__(self, scale: int, f_hat: Tensor) -> None:
        self.images.append(to_unit(self.vae.fhat_to_img(f_hat).float()))


# ------------------------------------------------------------------------------------------------ editing


class KeptTokens:
    """An `Exchange` that keeps the tokens of an image in a region: teacher forcing of the unchanged part.

    Args:
        idx_S: the image's token maps, S times (1, pn*pn).
        kept_nn: bool (n,n), the cells of the last token map that are kept. A coarser cell is kept if any part of it is,
            because the finer tokens refine it.
    """

    def __init__(self, student: Student, idx_S: Sequence[Tensor], kept_nn: Tensor) -> None:
        self.codebook, self.kept_nn = student.vae.quantize.embedding, kept_nn
        self.idx_S = idx_S

    def __call__(self, scale: int, h_BChw: Tensor) -> Tensor:
        pn = h_BChw.shape[-1]
        kept_h_1Chw = self.codebook(self.idx_S[scale]).transpose(1, 2).reshape(1, -1, pn, pn)
        return torch.where(kept_cells(self.kept_nn, pn), kept_h_1Chw.to(h_BChw.dtype), h_BChw)


def kept_cells(kept_nn: Tensor, pn: int) -> Tensor:
    """The cells of a pn x pn token map that are kept: bool (pn,pn)."""
    share = F.adaptive_avg_pool2d(kept_nn[None].float(), pn)[0]
    return share > 0
