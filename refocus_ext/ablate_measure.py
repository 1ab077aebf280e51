"""What every row of an ablation is measured by: distances of its samples to data, at several checkpoints.

Cross-entropies of rows with different tokenizers do not compare: their targets differ. Distances between images do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from patches import FastSampling, patched
from refocus_ext.checkpoint import Checkpoints, load_checkpoint
from refocus_ext.config_ablate import AblateOptions
from refocus_ext.data import SampleKey, derived_seed, spread
from refocus_ext.errors import UsageError
from refocus_ext.files import save_json
from refocus_ext.inception import FeatureStatistics, frechet_distance, load_inception
from refocus_ext.sampler import FOR_FID, sample_images
from refocus_ext.student import Student, load_student
from refocus_ext.tokenizer_plan import find_images
from refocus_ext.views import ViewCrops, ViewPlan

THUMBNAIL = 8  # pixels a side
FILE = "ablate-measured.json"


@dataclass(frozen=True)
class Measure:
    """Feature extractors by name, and how many images of which data they look at."""

    features: dict[str, Callable[[Tensor], Tensor]]
    data: str
    images: int
    batch: int
    device: torch.device

    @classmethod
    def of(cls, options: AblateOptions, device: torch.device) -> Measure:
        """FID where Inception's weights are at hand; the thumbnail distance always."""
        features: dict[str, Callable[[Tensor], Tensor]] = {"thumbnail_fd": thumbnails}
        try:
            features["fid"] = load_inception(options.inception_weights, device)
        except UsageError as missing:
            if options.inception_weights:
                raise
            print(f"FID is left out: {missing}")
        return cls(features, options.data, options.images, options.batch_size, device)


def thumbnails(image_B3HW: Tensor) -> Tensor:
    """(B, 3 * 8 * 8): colours of an 8 x 8 thumbnail, in units of 1/2 of the image's range."""
    return F.adaptive_avg_pool2d(image_B3HW.float(), THUMBNAIL).flatten(1)


def measure_run(measure: Measure, run: Path) -> dict[str, Any]:
    """Distances at each kept checkpoint, and what the run's own validation said last.

    What has been measured is kept in the run's folder under the checkpoint's checksum.
    """
    file = run / FILE
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    student = load_student(run, device=measure.device)
    reference: dict[str, FeatureStatistics] | None = None
    points = []
    for path in Checkpoints(run / "checkpoints").paths():
        key = f"{path.name} {measure.images} {','.join(measure.features)}"
        if key not in known:
            reference = reference or statistics_of(measure, reference_images(measure, student.image_size))
            state = load_checkpoint(path)
            student.var.load_state_dict(state["var"], strict=True)
            drawn = statistics_of(measure, samples(measure, student))
            distances = {name: frechet_distance(drawn[name], reference[name]) for name in measure.features}
            known[key] = {"step": int(state["step"]), **distances}
            save_json(file, known)
        points.append(known[key])
    return {"points": points, **validation(run)}


def statistics_of(measure: Measure, batches: Iterator[Tensor]) -> dict[str, FeatureStatistics]:
    """Of every extractor, over image batches in [-1,1]."""
    statistics = {name: FeatureStatistics() for name in measure.features}
    with torch.no_grad():
        for images in batches:
            for name, extract in measure.features.items():
                statistics[name].update(extract(images.to(measure.device)))
    return statistics


def samples(measure: Measure, student: Student) -> Iterator[Tensor]:
    """Images of classes in turn, in [-1,1]; the same seeds for every row."""
    classes = len(student.classes) or student.num_classes
    with patched(student.var, FastSampling()):
        for first in range(0, measure.images, measure.batch):
            indices = range(first, min(first + measure.batch, measure.images))
            labels = [index % classes for index in indices]
            yield sample_images(student, labels, seed=0, first=first, how=FOR_FID) * 2 - 1


def reference_images(measure: Measure, size: int) -> Iterator[Tensor]:
    """Crops of the validation images: the centre ones of a data set, random ones of the demo's few photographs."""
    _, val = find_images(measure.data)
    crops = ViewCrops(val, size, plan=ViewPlan(0, False, derived_seed(0, 31)))
    rounds = 1 if measure.data else -(-measure.images // len(val))
    keys = [SampleKey(epoch, index) for epoch in range(rounds) for index in range(len(val))]
    picks = spread(range(len(keys)), measure.images)
    for first in range(0, len(picks), measure.batch):
        yield torch.stack([crops[keys[pick]].image for pick in picks[first : first + measure.batch]])


def validation(run: Path) -> dict[str, float]:
    """The last validation in metrics.jsonl: cross-entropy of the student, and the teacher's gap with its controls."""
    last: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        last |= {name[4:]: value for name, value in record.items() if name.startswith("val/")}
    return {name: last[name] for name in ("ce_student", "gap_teacher", "gap_other", "gap_constant") if name in last}
