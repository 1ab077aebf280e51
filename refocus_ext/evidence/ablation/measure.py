"""The measures of every ablation row: distances of its samples to data, at several checkpoints.

Cross-entropies are comparable only between rows with the same tokens, image distances between all rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from patches.protocols import as_module
from refocus_ext.engine.checkpoints import checkpoints_of, load_checkpoint
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.sharding import load_model
from refocus_ext.errors import UsageError
from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.inception import InceptionFeatures, load_inception, to_uint8
from refocus_ext.evaluation.scores import inception_score
from refocus_ext.evidence.letters.measures import NAMES, Batch, LetterSet, fresh_letters
from refocus_ext.evidence.letters.reader import Reader, load_reader
from refocus_ext.images.order import SampleKey, spread
from refocus_ext.images.sources.kinds import find_images
from refocus_ext.images.sources.letters import is_letters, level_of
from refocus_ext.images.views import ViewCrops, ViewPlan
from refocus_ext.sampling.alternating import alternating_samples
from refocus_ext.sampling.student import load_student
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.atomic import save_json

THUMBNAIL = 8  # pixels per side
FILE = "ablate-measured.json"


def inception_if_there(weights: str, device: torch.device) -> InceptionFeatures | None:
    """Inception, or None, with a line that says why, if its weights are not available.

    Args:
        weights: a file; empty looks in torch's hub folder.

    Raises:
        UsageError: the given file is not Inception's.
    """
    try:
        return load_inception(weights, device)
    except UsageError as missing:
        if weights:
            raise
        print(f"FID and IS are not measured: {missing}")
        return None


def reader_if_letters(data: str, device: torch.device) -> Reader | None:
    """The classifier of drawn letters, if the data are some."""
    return load_reader(level_of(data), device) if is_letters(data) else None


@dataclass(frozen=True)
class Measure:
    """The number and source of the images to measure, Inception if available, and for drawn letters their classifier."""

    inception: InceptionFeatures | None
    data: str
    images: int
    batch: int
    device: torch.device
    val_share: float = 0.0
    reader: Reader | None = None

    @property
    def numbers(self) -> Sequence[str]:
        """The names of the measures."""
        names = ["thumbnail_fd", *(NAMES if self.reader is not None else ())]
        if self.inception is not None:
            names += ["fid", "is"] if self.inception.standard else ["fid*", "is*"]
        return names


class ImageStatistics:
    """Statistics of a set of images: the moments of thumbnails and, with Inception, of its features, and its classes; drawn letters
    also as their reader sees them."""

    def __init__(self, inception: InceptionFeatures | None, reader: Reader | None = None) -> None:
        self.inception = inception
        self.thumbnails, self.features = FeatureStatistics(), FeatureStatistics()
        self.logits: list[Tensor] = []
        self.letters = LetterSet(reader) if reader is not None else None

    def update(self, image_B3HW: Tensor, label_B: Tensor) -> None:
        """Adds images in [-1,1], which are measured as 8 bits, and their classes."""
        pixels = to_uint8(image_B3HW)
        self.thumbnails.update(thumbnails(pixels))
        if self.letters is not None:
            self.letters.update(image_B3HW, label_B)
        if self.inception is not None:
            pool_BD = self.inception(pixels)
            self.features.update(pool_BD)
            self.logits.append(self.inception.class_logits(pool_BD).cpu())

    def against(self, reference: ImageStatistics, names: Sequence[str]) -> dict[str, float]:
        """`Measure.numbers` of these samples."""
        values = [frechet_distance(self.thumbnails, reference.thumbnails)]
        if self.letters is not None and reference.letters is not None:
            values += self.letters.against(reference.letters).values().values()
        if self.inception is not None:
            values += [frechet_distance(self.features, reference.features), inception_score(torch.cat(self.logits))]
        return dict(zip(names, values, strict=True))


def thumbnails(pixel_B3HW: Tensor) -> Tensor:
    """(B, 3 * 8 * 8): colours of an 8 x 8 thumbnail of uint8 images, in units of 1/2 of their range."""
    return F.adaptive_avg_pool2d(pixel_B3HW.float() / 127.5, THUMBNAIL).flatten(1)


def measure_run(measure: Measure, run: Path) -> dict[str, Any]:
    """Numbers at each kept checkpoint, and the run's last validation.

    Results are cached in the run's folder under the checkpoint's checksum.
    """
    file = run / FILE
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    student = load_student(run, device=measure.device)
    reference: ImageStatistics | None = None
    points = []
    for path in checkpoints_of(run).paths():
        key = f"{path.name} {measure.images} {','.join(measure.numbers)}"
        if key not in known:
            reference = reference or statistics_of(measure, reference_images(measure, student.image_size))
            state = load_checkpoint(path)
            load_model(as_module(student.var), state, "var")
            print(f"{run.name}, step {state['step']}: {measure.images} samples", flush=True)
            drawn = statistics_of(measure, _shown(alternating_samples(student, measure.images, measure.batch), measure))
            known[key] = {"step": int(state["step"]), **drawn.against(reference, measure.numbers)}
            save_json(file, known)
        points.append(known[key])
    return {"points": points, **validation(run)}


def statistics_of(measure: Measure, batches: Iterator[Batch]) -> ImageStatistics:
    """Statistics of batches of images in [-1,1] and their classes."""
    statistics = ImageStatistics(measure.inception, measure.reader)
    for images, labels in batches:
        statistics.update(images.to(measure.device), labels)
    return statistics


def _shown(batches: Iterator[Batch], measure: Measure) -> Iterator[Batch]:
    """The same batches, with a progress display."""
    progress = Progress(0, -(-measure.images // measure.batch), measure.batch, unit="batch")
    for number, batch in enumerate(batches, start=1):
        yield batch
        progress.update(number, {})
    progress.close()


def reference_images(measure: Measure, size: int) -> Iterator[Batch]:
    """Crops of the validation images: centre crops of a data set, random crops of the demo's few photographs, fresh letters."""
    _, val = find_images(measure.data, measure.val_share)
    if val.drawn:
        yield from fresh_letters(val, size, measure.images, measure.batch)
        return
    crops = ViewCrops(val, size, plan=ViewPlan(0, False, stream_seed(0, Stream.REFERENCE_CROPS)))
    rounds = 1 if measure.data else -(-measure.images // len(val))
    keys = [SampleKey(epoch, index) for epoch in range(rounds) for index in range(len(val))]
    picks = spread(range(len(keys)), measure.images)
    for first in range(0, len(picks), measure.batch):
        samples = [crops[keys[pick]] for pick in picks[first : first + measure.batch]]
        yield torch.stack([sample.image for sample in samples]), torch.tensor([sample.label for sample in samples])


def validation(run: Path) -> dict[str, float]:
    """The last validation in metrics.jsonl: cross-entropy of the student, and the teacher's gap with its controls."""
    last: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        last |= {name[4:]: value for name, value in record.items() if name.startswith("val/")}
    return {name: last[name] for name in ("ce_student", "gap_teacher", "gap_other", "gap_constant") if name in last}
