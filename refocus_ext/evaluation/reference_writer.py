"""`bash run.sh eval --reference NPZ_OR_DIR --write-reference FILE`: the statistics of images, for later evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from refocus_ext.engine.distributed import World, join_world, preflight_device
from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.evaluation.frechet import Moments
from refocus_ext.evaluation.inception import InceptionFeatures
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.evaluation.reference import COUNT, STANDARD, STATISTICS
from refocus_ext.evaluation.samples import extract, load_inception
from refocus_ext.evaluation.samples_report import too_few
from refocus_ext.images.npz import NpzImages, has_array
from refocus_ext.images.readers import FolderImages, ImageSet
from refocus_ext.storage.atomic import written_beside


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        images, inception = open_inputs(options, world.device)
        write(Path(options.write_reference), images, inception, options.batch_size or 64, world)
    return 0


def preflight(options: EvalOptions) -> None:
    """Raises the UsageErrors that `main` would raise in every process."""
    preflight_device(options.device)
    open_inputs(options, torch.device("cpu"))


def open_inputs(options: EvalOptions, device: torch.device) -> tuple[ImageSet, InceptionFeatures]:
    """The images and the network.

    Raises:
        UsageError: one of them is missing, the images differ in size, or there are fewer than two.
    """
    path, side = Path(options.reference), options.reference_size
    threads = 4 if options.workers is None else options.workers
    with named("--reference"):
        images = _images(path, None if side is None else (side, side), threads)
        if images.count < 2:
            raise UsageError(f"{path} holds one image, but a covariance needs two; give more.")
    return images, load_inception(options.inception_weights, device)


def _images(path: Path, size: tuple[int, int] | None, threads: int) -> ImageSet:
    if not path.is_dir():
        if not has_array(path, "arr_0"):
            raise UsageError(
                f"{path} holds no images (no arr_0), whose statistics could be computed; give another file."
            )
        if size is not None:
            raise UsageError(f"{path} is no folder, and its images are taken as they are; omit --reference-size.")
        return NpzImages(path)
    try:
        return FolderImages(path, size, threads)
    except UsageError as error:
        if size is None and "same size" in str(error):
            raise UsageError(f"{error.args[0].rstrip('.')}, or give --reference-size.") from None
        raise


def write(path: Path, images: ImageSet, inception: InceptionFeatures, batch: int, world: World) -> None:
    """Computes the statistics, every process its share, and writes them on rank 0.

    Raises:
        RunFailed: the images cannot be read, or the file cannot be written.
    """
    world.say(f"Inception features of {images.count} images, on {world.device}")
    features = extract(images, inception, batch, world)
    if not world.main:
        return
    arrays = {COUNT: np.array(images.count), STANDARD: np.array(inception.standard)}
    arrays |= _arrays("pool", features.pool) | _arrays("spatial", features.spatial)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside, open(beside, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own flag
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}).") from error
    for line in (
        images.note and f"note: {images.note}",
        *too_few(images.count, "reference image", "these statistics"),
    ):
        if line:
            print(line)
    print(
        f"wrote {path}: mu, sigma, mu_s and sigma_s of {images.count} images; precision and recall need the images too"
    )


def _arrays(kind: str, moments: Moments) -> dict[str, np.ndarray]:
    """The arrays of a kind of statistics, float64."""
    mean, covariance, _ = STATISTICS[kind]
    return {mean: moments.mean.numpy(), covariance: moments.covariance.numpy()}
