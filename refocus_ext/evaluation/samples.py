"""`bash run.sh eval --samples NPZ_OR_DIR --reference NPZ_OR_DIR`: FID, sFID, IS, precision and recall as ADM defines them.

Images pass through Inception in batches, which processes take in turns, so results do not depend on the number of
processes. pool3 is kept (8 KiB per image); of the spatial features only mean and covariance are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refocus_ext.engine.distributed import World, join_world, preflight_device
from refocus_ext.engine.progress import Progress
from refocus_ext.errors import named
from refocus_ext.evaluation.frechet import FeatureStatistics, Moments, frechet_distance
from refocus_ext.evaluation.inception import InceptionFeatures, load_inception
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.evaluation.reference import Reference, open_reference
from refocus_ext.evaluation.samples_report import SampleReport, table, write_json
from refocus_ext.evaluation.scores import IS_SPLIT, NEIGHBOURS, fixed_permutation, inception_score, precision_recall
from refocus_ext.images.readers import ImageSet, open_samples

PAPERS_IMAGES = 50_000
ORDER_DROP = 0.2  # an Inception Score that loses more than this share to the file's order is reported
CHUNK = 4096  # features per batch, once they are in memory


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        samples, reference, inception = open_inputs(options, world.device)
        report = evaluate(samples, reference, inception, options.batch_size or 64, world)
        if report is not None:
            print("\n" + "\n".join(table(report, options.depth)))
            if options.json:
                with named("--json"):
                    write_json(Path(options.json), options.samples, options.reference, report)
    return 0


def preflight(options: EvalOptions) -> None:
    """Raises the UsageErrors that `main` would raise in every process."""
    preflight_device(options.device)
    open_inputs(options, torch.device("cpu"))


def open_inputs(options: EvalOptions, device: torch.device) -> tuple[ImageSet, Reference, InceptionFeatures]:
    """The samples, the reference and the network.

    Raises:
        UsageError: one of them is missing or of the wrong kind.
    """
    threads = 4 if options.workers is None else options.workers
    with named("--samples"):
        samples = open_samples(options.samples, threads)
    with named("--reference"):
        reference = open_reference(options.reference, samples, threads)
    return samples, reference, load_inception(options.inception_weights, device)


@dataclass(frozen=True)
class Features:
    """Features of all images of a set, in its order."""

    pool_ND: Tensor  # (N,2048) fp32, on the CPU
    spatial: FeatureStatistics

    @property
    def pool(self) -> FeatureStatistics:
        """Mean and covariance of pool3."""
        statistics = FeatureStatistics()
        for rows in self.pool_ND.split(CHUNK):
            statistics.update(rows)
        return statistics


def extract(images: ImageSet, inception: InceptionFeatures, batch: int, world: World, spatial: bool = True) -> Features:
    """The features of a set on every process; each computes its share of the batches.

    Args:
        spatial: whether to collect statistics of the spatial features.

    Raises:
        RunFailed: the images cannot be read.
    """
    rounds = math.ceil(images.count / batch / world.size)
    progress = Progress(0, rounds, batch * world.size, quiet=not world.main, unit="batch")
    pools: list[Tensor] = []
    statistics = FeatureStatistics()
    for done, pixels in enumerate(_on(world.device, images.batches(batch, world.rank, world.size)), start=1):
        activations = inception.activations(pixels)
        pools.append(activations.pool_BD.cpu())
        if spatial:
            statistics.update(activations.spatial_BS)
        progress.update(done, {})
    progress.close()
    shares = world.gather((pools, statistics))
    whole = FeatureStatistics()
    for _, part in shares:
        whole.merge(part)
    batches = range(math.ceil(images.count / batch))
    return Features(torch.cat([shares[b % world.size][0][b // world.size] for b in batches]), whole)


def _on(device: torch.device, batches: Iterator[np.ndarray]) -> Iterator[Tensor]:
    """Batches (B,H,W,3) as tensors (B,3,H,W), uint8."""
    for batch in batches:
        yield torch.from_numpy(batch.copy()).to(device).permute(0, 3, 1, 2)


def evaluate(
    samples: ImageSet, reference: Reference, inception: InceptionFeatures, batch: int, world: World
) -> SampleReport | None:
    """Measures `samples` against `reference`; every process takes part, rank 0 returns the report.

    Raises:
        RunFailed: images cannot be read.
    """
    if world.main:
        count = "stored statistics" if reference.images is None else f"{reference.images.count} reference images"
        print(
            f"Inception features of {samples.count} samples and {count}, on {world.device}" + _processes(world),
            flush=True,
        )
    ours = extract(samples, inception, batch, world)
    theirs = None
    if reference.images is not None:
        needed = reference.pool is None  # with stored statistics the images serve precision and recall only
        theirs = extract(reference.images, inception, batch, world, spatial=needed)
    if not world.main:
        return None
    missing: dict[str, str] = {}
    fid, sfid = _distances(ours, theirs, reference, missing)
    precision, recall = _precision_recall(ours, theirs, world.device, missing)
    in_order, shuffled = _inception_scores(ours, inception)
    ordered = _sorted(samples.labels, samples.count) or in_order < (1 - ORDER_DROP) * shuffled
    return SampleReport(
        images=samples.count,
        reference_images=reference.images.count if reference.images else 0,
        fid=fid,
        sfid=sfid,
        inception_score=in_order,
        inception_score_shuffled=shuffled,
        precision=precision,
        recall=recall,
        ordered_by_class=ordered,
        statistics_images=reference.statistics_images,
        stored_statistics=reference.pool is not None,
        not_measured=missing,
        notes=_notes(samples, reference, inception, ordered),
    )


def _processes(world: World) -> str:
    return f" x {world.size} processes" if world.size > 1 else ""


def _distances(
    ours: Features, theirs: Features | None, reference: Reference, missing: dict[str, str]
) -> tuple[float | None, float | None]:
    """(FID, sFID): against the stored statistics, or else against those of the reference images."""
    images = 2 if theirs is None else len(theirs.pool_ND)
    if min(len(ours.pool_ND), images) < 2:
        missing["fid"] = missing["sfid"] = "a covariance needs at least 2 images."
        return None, None
    pool: Moments | None = reference.pool or (theirs.pool if theirs else None)
    spatial: Moments | None = reference.spatial
    if spatial is None and reference.pool is None and theirs is not None:
        spatial = theirs.spatial
    if spatial is None:
        missing["sfid"] = "the reference stores mu and sigma but no mu_s and sigma_s."
    assert pool is not None
    return frechet_distance(ours.pool, pool), None if spatial is None else frechet_distance(ours.spatial, spatial)


def _precision_recall(
    ours: Features, theirs: Features | None, device: torch.device, missing: dict[str, str]
) -> tuple[float | None, float | None]:
    if theirs is None:
        missing["precision"] = missing["recall"] = "the reference holds statistics but no images."
        return None, None
    if min(len(ours.pool_ND), len(theirs.pool_ND)) <= NEIGHBOURS:
        missing["precision"] = missing["recall"] = f"it needs more than {NEIGHBOURS} images on each side."
        return None, None
    return precision_recall(ours.pool_ND.to(device), theirs.pool_ND.to(device))


def _inception_scores(ours: Features, inception: InceptionFeatures) -> tuple[float, float]:
    """The Inception Score in the order of the file, and shuffled."""
    logits = torch.cat([inception.class_logits(rows).cpu() for rows in ours.pool_ND.split(CHUNK)])
    return inception_score(logits, IS_SPLIT), inception_score(logits[fixed_permutation(len(logits))], IS_SPLIT)


def _sorted(labels: np.ndarray | None, count: int) -> bool:
    """Whether the labels are sorted and there is more than one split, so that the order matters."""
    if labels is None or count <= IS_SPLIT:
        return False
    return bool((labels[1:] >= labels[:-1]).all() and labels[0] != labels[-1])


def _notes(samples: ImageSet, reference: Reference, inception: InceptionFeatures, ordered: bool) -> list[str]:
    """Sentences on what makes these numbers incomparable with published ones."""
    notes = [samples.note] if samples.note else []
    if samples.count < PAPERS_IMAGES:
        notes.append(f"FID is biased upwards for few images: {samples.count} here, {PAPERS_IMAGES} in papers.")
    if not inception.standard:
        notes.append(
            "the Inception weights are not the published ones: these numbers are not comparable with published ones."
        )
    if reference.standard is not None and reference.standard != inception.standard:
        notes.append(
            "the reference's statistics were computed with other Inception weights than these: FID and sFID mean nothing; "
            "write them again with these weights."
        )
    if reference.images is None and reference.spatial is None and reference.standard is None:
        notes.append(
            "the reference has statistics of pool3 alone, as pytorch-fid writes them: that resizes and scales images otherwise "
            "than ADM does, which shifts FID; give the images, or statistics that `eval` wrote."
        )
    if ordered:
        notes.append(
            "the samples are ordered by class: the Inception Score is computed on splits of "
            f"{IS_SPLIT} images in order, each of which then holds few classes (about 62 instead of 280 for VAR-d16); the "
            "shuffled one is comparable with papers."
        )
    images = reference.images
    if images is not None:
        notes += [images.note] if images.note else []
        if reference.pool is None:
            notes.append(f"the reference stores no statistics: they were computed from its {images.count} images.")
        if images.size != samples.size:
            notes.append(f"the samples are {_pixels(samples)}, the reference images {_pixels(images)}.")
    return notes


def _pixels(images: ImageSet) -> str:
    return f"{images.size[1]}x{images.size[0]} px"
