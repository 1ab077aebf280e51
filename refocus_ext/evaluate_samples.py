"""`bash run.sh eval --samples NPZ_OR_DIR --reference NPZ_OR_DIR`: FID, sFID, IS, precision and recall as ADM defines them.

Images pass through Inception in batches, which processes take in turns. pool3 is kept (8 KiB an image), of the spatial
features only mean and covariance; so batch b and what is made of it do not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refocus_ext.config import EvalOptions
from refocus_ext.distributed import World, world
from refocus_ext.errors import RunFailed
from refocus_ext.files import save_json
from refocus_ext.generation_metrics import IS_SPLIT, NEIGHBOURS, fixed_permutation, inception_score, precision_recall
from refocus_ext.image_sets import ImageSet, Reference, open_reference, open_samples
from refocus_ext.inception import FeatureStatistics, InceptionFeatures, Moments, frechet_distance, load_inception
from refocus_ext.loop import Progress

PAPERS_IMAGES = 50_000
ORDER_DROP = 0.2  # an Inception Score that loses more than this share to the file's order is told
CHUNK = 4096  # features at once, where they are in memory already


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    with world(options.device) as here:
        threads = 4 if options.workers is None else options.workers
        samples = open_samples(options.samples, threads)
        reference = open_reference(options.reference, samples, threads)
        inception = load_inception(options.inception_weights, here.device)
        report = evaluate(samples, reference, inception, options.batch_size or 64, here)
        if report is not None:
            print("\n" + "\n".join(table(report, options.depth)))
            if options.json:
                write_json(Path(options.json), options, report)
    return 0


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class SampleReport:
    """All numbers of an evaluation; `not_measured` gives the reason for each that is None.

    `inception_score` is ADM's, over splits of 5000 images in the order of the file, `inception_score_shuffled` that of the
    same images in another order. `ordered_by_class` says that the first one is not to be compared with anybody's.
    """

    images: int
    reference_images: int
    fid: float | None
    sfid: float | None
    inception_score: float
    inception_score_shuffled: float
    precision: float | None
    recall: float | None
    ordered_by_class: bool
    not_measured: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Features:
    """Of all images of a set, in its order."""

    pool_ND: Tensor  # (N,2048) fp32, on the CPU
    spatial: FeatureStatistics

    @property
    def pool(self) -> FeatureStatistics:
        """Mean and covariance of pool3."""
        statistics = FeatureStatistics()
        for rows in self.pool_ND.split(CHUNK):
            statistics.update(rows)
        return statistics


def extract(images: ImageSet, inception: InceptionFeatures, batch: int, here: World, spatial: bool = True) -> Features:
    """The features of a set on every process; each computes its share of the batches.

    Args:
        spatial: whether their statistics are needed.

    Raises:
        RunFailed: the images cannot be read.
    """
    rounds = math.ceil(images.count / batch / here.size)
    progress = Progress(0, rounds, batch * here.size, quiet=not here.main, unit="batch")
    pools: list[Tensor] = []
    statistics = FeatureStatistics()
    for done, pixels in enumerate(_on(here.device, images.batches(batch, here.rank, here.size)), start=1):
        activations = inception.activations(pixels)
        pools.append(activations.pool_BD.cpu())
        if spatial:
            statistics.update(activations.spatial_BS)
        progress.update(done, {})
    progress.close()
    shares = here.gather((pools, statistics))
    whole = FeatureStatistics()
    for _, part in shares:
        whole.merge(part)
    batches = range(math.ceil(images.count / batch))
    return Features(torch.cat([shares[b % here.size][0][b // here.size] for b in batches]), whole)


def _on(device: torch.device, batches: Iterator[np.ndarray]) -> Iterator[Tensor]:
    """Batches (B,H,W,3) as tensors (B,3,H,W), uint8."""
    for batch in batches:
        yield torch.from_numpy(batch.copy()).to(device).permute(0, 3, 1, 2)


def evaluate(
    samples: ImageSet, reference: Reference, inception: InceptionFeatures, batch: int, here: World
) -> SampleReport | None:
    """Measures `samples` against `reference`; every process takes part, rank 0 has the report.

    Raises:
        RunFailed: images cannot be read.
    """
    if here.main:
        count = "stored statistics" if reference.images is None else f"{reference.images.count} reference images"
        print(
            f"Inception features of {samples.count} samples and {count}, on {here.device}" + _processes(here),
            flush=True,
        )
    ours = extract(samples, inception, batch, here)
    theirs = None
    if reference.images is not None:
        needed = reference.pool is None  # with stored statistics the images serve precision and recall only
        theirs = extract(reference.images, inception, batch, here, spatial=needed)
    if not here.main:
        return None
    missing: dict[str, str] = {}
    fid, sfid = _distances(ours, theirs, reference, missing)
    precision, recall = _precision_recall(ours, theirs, here.device, missing)
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
        not_measured=missing,
        notes=_notes(samples, reference, inception, ordered),
    )


def _processes(here: World) -> str:
    return f" x {here.size} processes" if here.size > 1 else ""


def _distances(
    ours: Features, theirs: Features | None, reference: Reference, missing: dict[str, str]
) -> tuple[float | None, float | None]:
    """(FID, sFID): against the stored statistics, else against those of the reference's images."""
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
        missing["precision"] = missing["recall"] = f"it needs more than {NEIGHBOURS} images on either side."
        return None, None
    return precision_recall(ours.pool_ND.to(device), theirs.pool_ND.to(device))


def _inception_scores(ours: Features, inception: InceptionFeatures) -> tuple[float, float]:
    """In the order of the file, and in another."""
    logits = torch.cat([inception.class_logits(rows).cpu() for rows in ours.pool_ND.split(CHUNK)])
    return inception_score(logits, IS_SPLIT), inception_score(logits[fixed_permutation(len(logits))], IS_SPLIT)


def _sorted(labels: np.ndarray | None, count: int) -> bool:
    """Whether the labels are in order and there is more than one split, so that it matters."""
    if labels is None or count <= IS_SPLIT:
        return False
    return bool((labels[1:] >= labels[:-1]).all() and labels[0] != labels[-1])


def _notes(samples: ImageSet, reference: Reference, inception: InceptionFeatures, ordered: bool) -> list[str]:
    """Sentences on what keeps these numbers from being compared with others'."""
    notes = [samples.note] if samples.note else []
    if samples.count < PAPERS_IMAGES:
        notes.append(f"FID is biased upwards on few images: {samples.count} here, {PAPERS_IMAGES} in papers.")
    if not inception.standard:
        notes.append("the Inception weights are not the published ones: these numbers compare with nobody's.")
    if ordered:
        notes.append(
            "the samples are ordered by class: the Inception Score is taken on splits of "
            f"{IS_SPLIT} images in order, each of which then holds few classes (about 62 instead of 280 for VAR-d16); the "
            "shuffled one compares with papers."
        )
    images = reference.images
    if images is not None:
        notes += [images.note] if images.note else []
        if reference.pool is None:
            notes.append(f"the reference stores no statistics: they are those of its {images.count} images.")
        if images.size != samples.size:
            notes.append(f"the samples are {_pixels(samples)}, the images of the reference {_pixels(images)}.")
    return notes


def _pixels(images: ImageSet) -> str:
    return f"{images.size[1]}x{images.size[0]} px"


# ------------------------------------------------------------------------------------------------ results

COLUMNS = {
    "fid": ("FID", ".2f"),
    "sfid": ("sFID", ".2f"),
    "is": ("IS", ".1f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
}

# Table 1 of the paper; VAR's IS at d16 is the baseline of its Table 2.
PUBLISHED: dict[int, dict[str, dict[str, float]]] = {
    12: {"VAR": {"fid": 5.81}, "ReFocus-VAR": {"fid": 3.95, "is": 238.2, "precision": 0.84, "recall": 0.49}},
    16: {
        "VAR": {"fid": 3.55, "is": 280.4},
        "ReFocus-VAR": {"fid": 2.89, "is": 298.1, "precision": 0.85, "recall": 0.54},
    },
    20: {"VAR": {"fid": 2.95}, "ReFocus-VAR": {"fid": 2.25, "is": 312.8, "precision": 0.86, "recall": 0.59}},
    24: {"VAR": {"fid": 2.33}, "ReFocus-VAR": {"fid": 1.75, "is": 325.8, "precision": 0.84, "recall": 0.61}},
}


def table(report: SampleReport, depth: int | None = None) -> list[str]:
    """The report as lines: ours, the published numbers (of one depth, or all), and what is to be known of them."""
    ours = {name: getattr(report, name) for name in ("fid", "sfid", "precision", "recall")}
    rows = [_row(f"{report.images} samples", ours | {"is": report.inception_score})]
    if report.ordered_by_class:
        rows.append(_row("  the same, shuffled", {"is": report.inception_score_shuffled}))
    depths = [depth] if depth else list(PUBLISHED)
    published = [_row(f"{name} d{d}", values) for d in depths for name, values in PUBLISHED[d].items()]
    return [
        f"{'':<22}" + "".join(f"{label:>11}" for label, _ in COLUMNS.values()),
        *rows,
        "published, ImageNet 256 px, 50000 samples (another machine, TensorFlow's Inception):",
        *published,
        "",
        *(f"note: {note}" for note in report.notes),
        *(f"not measured: {COLUMNS[name][0]}, because {reason}" for name, reason in report.not_measured.items()),
    ]


def _row(name: str, values: dict[str, float | None] | dict[str, float]) -> str:
    cells = ((values.get(key), form) for key, (_, form) in COLUMNS.items())
    return f"{name:<22}" + "".join(f"{'-':>11}" if value is None else f"{value:>11{form}}" for value, form in cells)


def write_json(path: Path, options: EvalOptions, report: SampleReport) -> None:
    """The report, and what it is of.

    Raises:
        RunFailed: the file cannot be written.
    """
    try:
        save_json(path, {"samples": options.samples, "reference": options.reference} | dataclasses.asdict(report))
    except OSError as error:
        raise RunFailed(f"--json {path} could not be written ({error.strerror}).") from error
