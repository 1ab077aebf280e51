"""A picture of all kinds of drawn letters and of letters spoiled in each way; curves of students over guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.evidence.letters.measures import LetterScores, fresh_letters
from refocus_ext.evidence.letters.reader import READ_AT
from refocus_ext.evidence.letters.spoiled import KINDS
from refocus_ext.images.picture import grid
from refocus_ext.images.sources.kinds import find_split
from refocus_ext.images.sources.letters import LEVELS
from refocus_ext.storage.atomic import written_beside

COLUMNS, SIDE = 8, 128


def letters_picture(data: str) -> Image.Image:
    """Eight pictures of each level, and eight of `data` spoiled in each way."""
    names = [*LEVELS, f"{data}-unseen", *(f"{data}: {kind}" for kind in KINDS if kind != "fresh letters")]
    rows = [_fresh(level, SIDE) for level in LEVELS] + [_fresh(f"{data}-unseen", SIDE)]
    letters = torch.stack(_fresh(data, READ_AT.get(data, 64)))
    rows += [list(spoil(letters)) for kind, spoil in KINDS.items() if kind != "fresh letters"]
    return grid(rows, [""] * COLUMNS, names=names, side=SIDE)


def _fresh(data: str, side: int) -> list[Tensor]:
    """The level's pictures at its own size, enlarged by repeating pixels."""
    size = READ_AT.get(data.removesuffix("-unseen"), 64)
    source = find_split(data, "val")
    image, _ = next(fresh_letters(source, size, len(source.classes), len(source.classes)))
    chosen = image[:: len(image) // COLUMNS][:COLUMNS]  # of different classes
    return list(F.interpolate(chosen, (side, side), mode="nearest") if side > size else chosen)


def draw_guidance(path: Path, rows: Mapping[str, LetterScores], cfgs: Sequence[float]) -> None:
    """What is read against recall, a curve for each student: of two that are read equally often, the one to the right varies more.

    Args:
        rows: the measures by "STUDENT, cfg NUMBER"; others are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120, layout="constrained")
    names = dict.fromkeys(name.rpartition(", cfg ")[0] for name in rows if ", cfg " in name)
    for name in names:
        points = [(cfg, rows[f"{name}, cfg {cfg:g}"]) for cfg in sorted(cfgs)]
        recall, read = [scores.recall for _, scores in points], [100 * scores.legibility for _, scores in points]
        (line,) = axes.plot(recall, read, marker="o", markersize=3, label=name)
        for (cfg, _), x, y in zip(points, recall, read, strict=True):
            axes.annotate(f"{cfg:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7, color=line.get_color())
    axes.set_xlabel("recall (higher: more varied)")
    axes.set_ylabel("read, % (numbers: cfg)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png")
    pyplot.close(figure)
