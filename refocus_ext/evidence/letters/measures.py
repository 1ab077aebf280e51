"""What is measured on samples of letters: legibility, distance, precision, recall, edges and moire, against fresh letters.

Shapes: B images, N images of a set, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.scores import NEIGHBOURS, precision_recall
from refocus_ext.evidence.letters.bands import BandEnergy, decibels
from refocus_ext.evidence.letters.reader import Reader
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import Stream, stream_seed

NAMES = ("legibility", "letters_fd", "precision", "recall", "edges", "moire")


@dataclass(frozen=True)
class LetterScores:
    """The measures of a set of samples.

    Attributes:
        legibility: share that the reader reads as the class asked for.
        letters_fd: Frechet distance of its features to those of fresh letters.
        precision, recall: of the same features, as `eval` defines them.
        edges, moire: energy in two bands beside that of fresh letters, dB (`bands.py`).
        images: number of samples.
    """

    legibility: float
    letters_fd: float
    precision: float
    recall: float
    edges: float
    moire: float
    images: int

    def values(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in NAMES}


class LetterSet:
    """A set of pictures as the reader sees them."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.bands = reader, BandEnergy()
        self._features: list[Tensor] = []
        self._right, self.count = 0, 0

    @torch.no_grad()
    def update(self, image_B3HW: Tensor, label_B: Tensor) -> None:
        """Adds images in [-1,1] and the classes asked for. They are measured as 8 bits, as pictures are kept."""
        image = ((image_B3HW.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        reading = self.reader(image)
        self._features.append(reading.feature_BD.cpu())
        self._right += int((reading.logit_BV.argmax(1) == label_B.to(image.device)).sum())
        self.count += len(image)
        self.bands.update(image)

    @property
    def feature_ND(self) -> Tensor:
        return torch.cat(self._features)

    @property
    def legibility(self) -> float:
        return self._right / self.count

    def against(self, fresh: LetterSet) -> LetterScores:
        """The measures of this set; `fresh` has pictures of the same size.

        Raises:
            ValueError: a set has too few pictures for precision and recall.
        """
        statistics = []
        for features in (self.feature_ND, fresh.feature_ND):
            statistics.append(FeatureStatistics())
            statistics[-1].update(features)
        nearest = precision_recall(self.feature_ND, fresh.feature_ND)
        return LetterScores(
            legibility=self.legibility,
            letters_fd=frechet_distance(*statistics),
            precision=nearest.precision,
            recall=nearest.recall,
            **decibels(self.bands.shares(), fresh.bands.shares()),
            images=self.count,
        )


LEAST = NEIGHBOURS + 1  # images of a set

Batch = tuple[Tensor, Tensor]  # images in [-1,1], classes


def letter_set(reader: Reader, batches: Iterable[Batch]) -> LetterSet:
    """The set of these batches, on the reader's device."""
    found = LetterSet(reader)
    device = next(reader.parameters()).device
    for image, label in batches:
        found.update(image.to(device), label)
    return found


def _key(source: ImageSource, number: int) -> SampleKey:
    """Picture `number` of a set in which the classes take turns; `source` has them in order, equally many of each."""
    classes = len(source.classes)
    epoch, rest = divmod(number, len(source))
    turn, label = divmod(rest, classes)
    return SampleKey(epoch, label * (len(source) // classes) + turn)


def fresh_letters(source: ImageSource, size: int, images: int, batch: int, number: int = 0) -> Iterator[Batch]:
    """Pictures that no training shows, of alternating classes. Another `number` gives other pictures.

    Args:
        source: a "val" split of drawn pictures.
        size: pixels.
    """
    crops = Crops(source, size, seed=stream_seed(number, Stream.REFERENCE_CROPS))
    for first in range(0, images, batch):
        keys = [_key(source, number) for number in range(first, min(first + batch, images))]
        samples = [crops[key] for key in keys]
        yield torch.stack([sample.image for sample in samples]), torch.tensor([sample.label for sample in samples])
