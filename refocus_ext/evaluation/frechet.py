"""Streaming mean and covariance of features, and the Frechet distance between two sets."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------ statistics


class Moments(Protocol):
    """The moments of a distribution that a Frechet distance needs."""

    @property
    def mean(self) -> Tensor: ...  # (D,)
    @property
    def covariance(self) -> Tensor: ...  # (D,D)


class Gaussian(NamedTuple):
    """Moments that come from elsewhere, such as `mu` and `sigma` of a reference file."""

    mean: Tensor
    covariance: Tensor


AT_ONCE = 4096  # features; a small batch would cost as many passes over the D x D sums as a large one


class FeatureStatistics:
    """Mean and covariance of features in float64, a few thousand at a time; statistics of parts can be merged.

    Centred sums (Chan et al., 1979) keep full precision for features far from 0.
    """

    def __init__(self) -> None:
        self._added = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T
        self._waiting: list[Tensor] = []

    @property
    def count(self) -> int:
        """Features seen."""
        return self._added + sum(map(len, self._waiting))

    def update(self, features_BD: Tensor) -> None:
        """Adds a batch of features (B,D); they are moved to the CPU."""
        if features_BD.ndim != 2:
            raise ValueError(f"features must be (B,D), got {tuple(features_BD.shape)}")
        width = self._waiting[0].shape[1] if self._waiting else len(self._mean)
        if width and features_BD.shape[1] != width:
            raise ValueError(f"features of width {features_BD.shape[1]} cannot be merged with those of width {width}")
        self._waiting.append(features_BD.detach().to("cpu", copy=True))
        if sum(map(len, self._waiting)) >= AT_ONCE:
            self._add_waiting()

    def merge(self, other: FeatureStatistics) -> None:
        """Adds everything that `other` has seen."""
        if other.count:
            other._add_waiting()
            self._add_waiting()
            self._add(other._added, other._mean, other._scatter)

    def _add_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        features = torch.cat(waiting).double() if waiting else torch.zeros(0)
        if len(features):
            mean = features.mean(0)
            centred = features - mean
            self._add(len(features), mean, centred.T @ centred)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self._added:
            self._added, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features of width {len(mean)} cannot be merged with those of width {len(self._mean)}")
        total, shift = self._added + count, mean - self._mean
        self._mean += shift * (count / total)
        self._scatter += scatter + torch.outer(shift, shift) * (self._added * count / total)
        self._added = total

    @property
    def mean(self) -> Tensor:
        """(D,), float64.

        Raises:
            ValueError: nothing has been seen.
        """
        if not self.count:
            raise ValueError("no features have been seen")
        self._add_waiting()
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D,D), float64, over N - 1 as in the reference implementations.

        Raises:
            ValueError: fewer than two features have been seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        self._add_waiting()
        return self._scatter / (self._added - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two Gaussians: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

    Singular covariances (fewer images than features) are fine: no matrix is inverted or offset.

    Raises:
        ValueError: the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {len(b.mean)} cannot be compared with those of width {len(a.mean)}")
    shift = a.mean.double() - b.mean.double()
    A, B = a.covariance.double(), b.covariance.double()
    # tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2). Unlike the square roots of the eigenvalues of
    # A B, they do not turn rounding errors of 1e-16 into 1e-8 if A or B is singular.
    cross = torch.linalg.svdvals(_factor(A).T @ _factor(B)).sum()
    return max(0.0, (shift.square().sum() + A.trace() + B.trace() - 2 * cross).item())


def _factor(covariance_DD: Tensor) -> Tensor:
    """F (D,r) with F F^T = the covariance, r its numerical rank."""
    values, vectors = torch.linalg.eigh(covariance_DD)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
