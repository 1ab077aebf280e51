"""Shared by the structure and alias quantizers: code search, straight-through, k-means, codebook usage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

SEARCH = 2**24  # distances held at once by a search for nearest codes: 64 MiB


def prefix_projection(f_BChw: Tensor, pn: int) -> Tensor:
    """P, the part of a latent that pn x pn cells can represent: area-average down, bicubic back up (identity at n)."""
    size = f_BChw.shape[-2:]
    if tuple(size) == (pn, pn):
        return f_BChw
    return F.interpolate(F.interpolate(f_BChw, size=(pn, pn), mode="area"), size=size, mode="bicubic")


def straight_through(f_hat_BChw: Tensor, target_BChw: Tensor, pn: int | None = None) -> Tensor:
    """f_hat in value; in gradient P(target), with P of `prefix_projection` at `pn` (None: the identity).

    A coarse prefix has few tokens and can follow only the part of a gradient that survives P; the whole gradient would
    move the encoder where the tokens cannot follow. Codebook and phi get no gradient.
    """
    followed = target_BChw if pn is None else prefix_projection(target_BChw, pn)
    # upstream's order of operations, (f_hat - sg f) + f, to the bit
    return (f_hat_BChw.detach() - followed.detach()).add_(followed)


@contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Inside, fp32 products use full fp32: TF32, and bf16 on a CPU, would change some nearest codes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def nearest_code(z_NC: Tensor, table_VC: Tensor) -> Tensor:
    """Index (N,) of the nearest row of the table, by ||e||^2 - 2 z.e in chunks; ties to the lowest index."""
    norm_V = table_VC.square().sum(1)
    rows = max(1, SEARCH // len(table_VC))
    with full_precision_matmul():
        return torch.cat([torch.addmm(norm_V, z, table_VC.T, alpha=-2).argmin(1) for z in z_NC.split(rows)])


def nearest_row(points_NC: Tensor, table_VC: Tensor) -> Tensor:
    """Index (N,) of the nearest row of the table, by distances in chunks."""
    rows = max(1, SEARCH // max(1, len(table_VC)))
    return torch.cat([torch.cdist(points, table_VC).argmin(1) for points in points_NC.split(rows)])


@torch.no_grad()
def kmeans(points_NC: Tensor, codes: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Lloyd's algorithm from random points, (codes, C); if there are too few points they are repeated with jitter."""
    N, _ = points_NC.shape
    picks = torch.randperm(N, generator=generator)[:codes]
    centres = points_NC[picks.to(points_NC.device)].clone()
    if codes > N:
        extra = points_NC[torch.randint(N, (codes - N,), generator=generator).to(points_NC.device)]
        jitter = 0.1 * points_NC.std() * torch.randn(extra.shape, generator=generator).to(extra)
        return torch.cat([centres, extra + jitter])
    for _ in range(iterations):
        nearest = nearest_row(points_NC, centres)
        count = code_hits(nearest, codes).unsqueeze(1)
        total = torch.zeros_like(centres).index_add_(0, nearest, points_NC)
        centres = torch.where(count > 0, total / count.clamp_min(1), centres)
    return centres


def code_hits(idx: Tensor, codes: int, dtype: torch.dtype = torch.long) -> Tensor:
    """(codes,), how often each code occurs; unlike `bincount` it does not wait for a GPU."""
    flat = idx.flatten()
    return flat.new_zeros(codes, dtype=dtype).scatter_add_(0, flat, flat.new_ones(len(flat), dtype=dtype))


def codebook_use(hits_V: Tensor) -> tuple[float, float]:
    """(percent of codes seen, perplexity: exp of the entropy in nats) of how often each code was seen, in float64."""
    share = hits_V.double() / hits_V.sum()
    return 100 * (hits_V > 0).double().mean().item(), math.exp(torch.special.entr(share).sum().item())


def codebook_use_of(idx: Tensor, vocab_size: int) -> tuple[float, float]:
    """`codebook_use` of a set of tokens."""
    return codebook_use(idx.flatten().bincount(minlength=vocab_size))
