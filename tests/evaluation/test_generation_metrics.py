"""Inception Score, precision and recall against loops that follow their definitions, and against torch-fidelity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.scores import fixed_permutation, inception_score, precision_recall, squared_radii


def features(count: int, width: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


# ------------------------------------------------------------------------------------------------ Inception Score


def test_inception_score_by_hand() -> None:
    """Two images certain of two classes: 2. All alike: 1. 3/4 against 1/4 each way: exp(KL) with a mean of 1/2."""
    certain = torch.tensor([[500.0, 0], [0, 500.0]])
    assert inception_score(certain) == pytest.approx(2)
    assert inception_score(certain[:1].repeat(4, 1)) == pytest.approx(1)
    leaning = torch.tensor([[3.0, 1], [1, 3]]).log()
    expected = math.exp(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert inception_score(leaning) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="at least 1 image"):
        inception_score(torch.zeros(0, 5))


def test_inception_score_is_the_mean_over_splits_in_order_the_last_one_short() -> None:
    logits = 3 * features(25, 8)
    scores = []
    for part in (logits[:10], logits[10:20], logits[20:]):
        p = np.exp(part.double().numpy())
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    assert inception_score(logits, 10) == pytest.approx(np.mean(scores), rel=1e-9)


def test_inception_score_is_torch_fidelitys() -> None:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    logits = 3 * features(30, 8)
    theirs = isc_features_to_metric(logits, splits=3, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert inception_score(logits, 10) == pytest.approx(theirs, rel=1e-9)


def test_order_by_class_lowers_it_to_the_classes_of_a_split() -> None:
    logits = 500 * torch.eye(10).repeat_interleave(20, 0)
    assert inception_score(logits, 20) == pytest.approx(1)
    assert inception_score(logits[fixed_permutation(200)], 20) > 6
    assert torch.equal(fixed_permutation(200), fixed_permutation(200))
    assert sorted(fixed_permutation(200).tolist()) == list(range(200))


# ------------------------------------------------------------------------------------------------ precision and recall


def share_by_loops(inner: Tensor, outer: Tensor, k: int) -> float:
    """Share of `inner` within the distance of any of `outer` to its k-th nearest other one."""
    inside = 0
    for x in inner:
        for i, centre in enumerate(outer):
            others = sorted(math.dist(centre, other) for j, other in enumerate(outer) if j != i)
            if math.dist(x, centre) <= others[k - 1]:
                inside += 1
                break
    return inside / len(inner)


@pytest.mark.parametrize("block", [3, 7, 4096])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_loops_whatever_the_block(k: int, block: int) -> None:
    samples, reference = 0.8 * features(19, seed=1, shift=0.4), features(26, seed=2)
    found = precision_recall(samples, reference, k, block)
    assert found.precision == share_by_loops(samples, reference, k)
    assert found.recall == share_by_loops(reference, samples, k)
    assert 0 < found.recall < found.precision < 1


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    samples, reference = 0.8 * features(150, seed=1, shift=0.4), features(200, seed=2)
    assert precision_recall(samples, reference, block=64) == pytest.approx(
        calculate_precision_recall_full(samples, reference), abs=1e-6
    )


def test_precision_and_recall_far_from_zero_lose_nothing() -> None:
    """fp32 squares of 1000 would leave distances of 1 with an error of 0.1."""
    samples, reference = 0.8 * features(60, seed=1, shift=0.4), features(70, seed=2)
    near = precision_recall(samples.double(), reference.double())
    assert precision_recall(samples + 1000, reference + 1000) == pytest.approx(near, abs=1 / 60)


def test_same_sets_and_far_sets() -> None:
    x = features(30)
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_radii_by_loops() -> None:
    x = features(11)
    expected = [sorted(math.dist(a, b) for b in x)[3] ** 2 for a in x]
    assert squared_radii(x, 3, 4).tolist() == pytest.approx(expected, rel=1e-4)


def test_what_precision_and_recall_refuse() -> None:
    with pytest.raises(ValueError, match="3 neighbours and need more images than that, got 3 of reference"):
        precision_recall(features(9), features(3))
    with pytest.raises(ValueError, match="width 6 cannot be compared with those of width 5"):
        precision_recall(features(9), features(9, 5))


# ------------------------------------------------------------------------------------------------ FID


def test_distance_of_streamed_features_is_that_of_numpy_and_scipy() -> None:
    """The whole chain, mean and covariance included, with fewer images than features as well."""
    for count in (200, 20):
        samples, reference = features(count, 32, seed=1, shift=0.3), features(count + 9, 32, seed=2) ** 3
        parts = []
        for x in (samples, reference):
            statistics = FeatureStatistics()
            for rows in x.split(16):
                statistics.update(rows)
            parts.append(statistics)
        a, b = samples.double().numpy(), reference.double().numpy()
        A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        offset = 0.0 if count > 32 else 1e-10 * np.eye(32)  # sqrtm needs a regular matrix
        root = scipy.linalg.sqrtm((A + offset) @ (B + offset)).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A + B - 2 * root)
        assert frechet_distance(*parts) == pytest.approx(expected, rel=1e-3 if count < 32 else 1e-9)
