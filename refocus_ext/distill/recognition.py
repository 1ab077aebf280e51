"""Do samples show what was asked for? Of data with one photograph for each class, such as the demo's, by nearest thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from patches import FastSampling, patched
from patches.protocols import VAR, device_of
from patches.sampling import Guidance, Noise, sample
from refocus_ext.images.crops import Crops
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import image_seed

SIDE = 16  # of a thumbnail, pixels
EACH = 10  # samples of every photograph
BATCH = 19


class Recognized(NamedTuple):
    """Samples, drawn at guidance `cfg`, whose nearest photograph is the one they were asked to show."""

    right: int
    samples: int
    cfg: float

    def line(self) -> str:
        share = 100 * self.right / self.samples
        return (
            f"{share:.0f}% of {self.samples} samples ({EACH} of each photograph) are nearer to their own photograph than to any "
            f"other, by {SIDE} x {SIDE} thumbnails (cfg {self.cfg:g})"
        )


def one_of_each(images: ImageSource) -> bool:
    """Whether every class has one picture, so that a sample has one to be compared with."""
    return 1 < len(images) == len(images.classes) and not images.drawn


@torch.no_grad()
def recognized(var: VAR, images: ImageSource, size: int, seed: int, guidance: Guidance) -> Iterator[Recognized]:
    """Draws `EACH` samples of every picture and compares; yields the count so far after each batch.

    Args:
        var: a student whose classes are the pictures' labels; in eval mode while this runs.
        size: of its images, pixels.
    """
    crops = Crops(images, size, random=False)
    shown_ND = thumbnails(torch.stack([crops[index].image for index in range(len(images))]))
    wanted_N = torch.tensor([images.label(index) for index in range(len(images))])
    guidance = guidance.for_codes(var.V)
    labels = wanted_N.repeat(EACH)
    right, training = 0, var.training
    var.eval()
    try:
        with patched(var, FastSampling()):
            for first in range(0, len(labels), BATCH):
                label_B = labels[first : first + BATCH]
                seeds = [image_seed(seed, first + number) for number in range(len(label_B))]
                drawn = sample(var, label_B.to(device_of(var)), Noise(seeds, device_of(var)), guidance)
                nearest_B = torch.cdist(thumbnails(drawn.cpu() * 2 - 1), shown_ND).argmin(1)
                right += int((wanted_N[nearest_B] == label_B).sum())
                yield Recognized(right, first + len(label_B), guidance.cfg)
    finally:
        var.train(training)


def thumbnails(image_B3HW: Tensor) -> Tensor:
    """(B, 3 * 16 * 16), the means of blocks."""
    return F.adaptive_avg_pool2d(image_B3HW.float(), SIDE).flatten(1)
