"""samples.png of a stage-2 run: what the student draws, by upstream's own sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refocus_ext.data import spread
from refocus_ext.picture import as_array, grid, save_png
from refocus_ext.run_folder import RunFolder

COLUMNS = 8
CFG, TOP_K, TOP_P = 1.5, 900, 0.96  # DESIGN 6


@torch.no_grad()
def sample_classes(var: Any, classes: int, count: int, seed: int) -> tuple[Tensor, list[int]]:
    """`count` images (N,3,H,W) in [-1,1] of classes spread evenly, with their labels."""
    labels = sorted(spread(range(classes), count) * (-(-count // min(count, classes))))[:count]
    label_B = torch.tensor(labels, device=var.lvl_1L.device)
    training = var.training
    var.eval()
    try:
        images = var.autoregressive_infer_cfg(
            B=count, label_B=label_B, g_seed=seed, cfg=CFG, top_k=min(TOP_K, var.V), top_p=TOP_P
        )
    finally:
        for block in var.blocks:  # upstream leaves its caches on if sampling raises
            block.attn.kv_caching(False)
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
