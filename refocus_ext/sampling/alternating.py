"""Samples of alternating classes, for measures that need equally many of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patches import FastSampling, patched
from patches.sampling import Guidance
from refocus_ext.sampling.sampler import FOR_FID, sample_images
from refocus_ext.sampling.student import Student


def alternating_samples(
    student: Student, images: int, batch: int, seed: int = 0, guidance: Guidance = FOR_FID
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (images in [-1,1], classes), by default drawn as for FID; image i is of trained class i modulo their number."""
    classes = student.trained_classes
    with patched(student.var, FastSampling()):
        for first in range(0, images, batch):
            labels = [classes[index % len(classes)] for index in range(first, min(first + batch, images))]
            image_B3HW = sample_images(student, labels, seed=seed, first=first, guidance=guidance) * 2 - 1
            yield image_B3HW, torch.tensor(labels)
