"""samples.png of a stage-2 run: images of the student, by upstream's own sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patches.protocols import VAR
from patches.sampling import sample_as_upstream
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.images.order import spread
from refocus_ext.images.picture import as_array, grid, save_png
from refocus_ext.sampling.sampler import FOR_FID

COLUMNS = 8


@torch.no_grad()
def sample_classes(var: VAR, classes: Sequence[int], count: int, seed: int) -> tuple[Tensor, list[int]]:
    """`count` images (N,3,H,W) in [-1,1], float32, of these classes, spread evenly, with their labels."""
    labels = sorted(spread(classes, count) * (-(-count // min(count, len(classes)))))[:count]
    training = var.training
    var.eval()
    try:
        images = sample_as_upstream(var, labels, seed=seed, guidance=FOR_FID)
    finally:
        var.train(training)
    return images * 2 - 1, labels


def draw_samples(
    run: RunFolder, images: Tensor, labels: list[int], names: tuple[str, ...], title: str, step: int
) -> None:
    """Writes the grid, captioned with class names."""
    captions = [names[label] if label < len(names) else str(label) for label in labels]
    columns = min(COLUMNS, len(images))
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    captioned = [captions[i : i + columns] for i in range(0, len(images), columns)]
    picture = grid(rows, [""] * columns, captioned, title=title)
    save_png(run.path / "samples.png", picture)
    run.log_image(step, "samples", as_array(picture))
