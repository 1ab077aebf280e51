"""The formulas of ADM's evaluation (Dhariwal & Nichol, 2021) on features: Inception Score, precision and recall.

The Frechet distance of FID and sFID is `inception.frechet_distance`. N and M are numbers of images, D the feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

IS_SPLIT = 5000  # images per split, in ADM's evaluator
NEIGHBOURS = 3
BLOCK = 4096  # rows and columns of distances in memory: 64 MiB


def inception_score(logits_NV: Tensor, split: int = IS_SPLIT) -> float:
    """Mean over splits of exp(mean KL(p(y|x) || p(y))), p(y) the mean of the split (Salimans et al., 2016), in float64.

    Splits are `split` consecutive images, the last one may be smaller; so the order matters if there are several.

    Raises:
        ValueError: there are no images.
    """
    if not len(logits_NV):
        raise ValueError("an Inception Score needs at least 1 image, got 0")
    scores = []
    for logits in logits_NV.split(split):
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        # KL = sum p log p - sum p log q; its mean over images needs q only once, and 0 log 0 is 0
        entropy_of_mean = torch.special.entr(p.mean(0)).sum()
        scores.append((entropy_of_mean + (p * log_p).sum(1).mean()).exp())
    return torch.stack(scores).mean().item()


def fixed_permutation(count: int) -> Tensor:
    """A fixed shuffle of `count` images, (count,) int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


class PrecisionRecall(NamedTuple):
    """Precision: share of samples inside the reference's manifold. Recall: share of the reference inside the samples'."""

    precision: float
    recall: float


def precision_recall(
    samples_ND: Tensor, reference_MD: Tensor, k: int = NEIGHBOURS, block: int = BLOCK
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019), on the tensors' device.

    A manifold is a ball around each feature out to its k-th nearest other one. Distances are fp32 (fp64 for fp64 features);
    ADM's evaluator uses fp16 if that does not overflow, so the last digits differ.

    Raises:
        ValueError: a set has no k-th neighbour, or the widths differ.
    """
    for name, features in (("samples", samples_ND), ("reference", reference_MD)):
        if len(features) <= k:
            raise ValueError(
                f"precision and recall use {k} neighbours and need more images than that, got {len(features)} of {name}"
            )
    if samples_ND.shape[1] != reference_MD.shape[1]:
        raise ValueError(
            f"features of width {samples_ND.shape[1]} cannot be compared with those of width {reference_MD.shape[1]}"
        )
    # same origin for both: the expanded square of a distance loses digits far from 0
    origin = reference_MD.mean(0)
    samples, reference = samples_ND - origin, reference_MD - origin
    return PrecisionRecall(
        precision=_share_inside(samples, reference, squared_radii(reference, k, block), block),
        recall=_share_inside(reference, samples, squared_radii(samples, k, block), block),
    )


def squared_radii(features_ND: Tensor, k: int = NEIGHBOURS, block: int = BLOCK) -> Tensor:
    """Squared distance from each feature to its k-th nearest other one, (N,)."""
    radii = []
    for rows in features_ND.split(block):
        nearest = torch.empty(len(rows), 0, dtype=rows.dtype, device=rows.device)
        for distances in _squared_distances(rows, features_ND, block):
            # k + 1, because every feature is its own nearest neighbour
            joined = torch.cat([nearest, distances], 1)
            nearest = joined.topk(min(k + 1, joined.shape[1]), largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def _share_inside(features: Tensor, centres: Tensor, squared_radii_M: Tensor, block: int) -> float:
    """Share of `features` inside the ball of any centre."""
    inside = 0
    for rows in features.split(block):
        hit = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        columns = zip(_squared_distances(rows, centres, block), squared_radii_M.split(block), strict=True)
        for distances, radii in columns:
            hit |= (distances <= radii).any(1)
        inside += int(hit.sum())
    return inside / len(features)


def _squared_distances(rows_BD: Tensor, features_ND: Tensor, block: int) -> Iterator[Tensor]:
    """Blocks (B, up to `block`) of squared distances, never negative."""
    norms = rows_BD.square().sum(1, keepdim=True)
    for columns in features_ND.split(block):
        yield torch.addmm(norms + columns.square().sum(1), rows_BD, columns.T, alpha=-2).clamp_min_(0)
