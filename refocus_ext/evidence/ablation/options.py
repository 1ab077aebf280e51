"""Options and presets of `ablate`. Standard library only, so that help is instant."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from refocus_ext.evidence.ablation.rows import ROWS
from refocus_ext.options import shared as common
from refocus_ext.options.parser import int_list, option, positive

ABLATE_DESCRIPTION = """
Trains the rows of Table 2 (plain VAR, all of it, and all of it without one part) under one budget, measures them alike
and writes a report with the paper's numbers beside. Typed again, the same command goes on where it stopped.
"""


def row_list(text: str) -> tuple[str, ...]:
    """'baseline,full' -> ('baseline', 'full')."""
    names = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in names if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"there is no row '{unknown[0]}'; rows are {', '.join(ROWS)}")
    return names


@dataclasses.dataclass(frozen=True)
class AblateOptions:
    """The rows of the paper's Table 2 under one budget."""

    # fmt: off
    preset: str = option("", "of both stages; demo without --data, paper with it", choices=("demo", "vanilla", "paper", "paper-512"), group="what to train")
    demo: bool = option(False, "the preset demo: minutes on two CPU cores", group="what to train", identity=False)
    data: str = option("", "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it the demo photographs", metavar="DIR", group="what to train")
    rows: tuple[str, ...] = option(ROWS, f"which rows, of {', '.join(ROWS)}", kind=row_list, metavar="NAME,..", group="what to train", identity=False)
    seeds: tuple[int, ...] = option((0,), "one run of every row for each; a spread needs several", kind=int_list, group="what to train", identity=False)
    depth: int = option(None, "D of the students", kind=positive(int), group="budget")
    tokenizer_steps: int = option(None, "steps of each tokenizer", kind=positive(int), group="budget")
    distill_steps: int = option(None, "steps of each student", kind=positive(int), group="budget")
    tokenizer_options: str = option("", "further options of `tokenizer` for all rows, in quotes", metavar="WORDS", group="budget")
    distill_options: str = option("", "further options of `distill` for all rows, in quotes", metavar="WORDS", group="budget")

    points: int = option(4, "checkpoints of each student that are measured, the last one included", kind=positive(int), group="measurement")
    images: int = option(None, "sampled at each point, and at most as many taken of the data", kind=positive(int), group="measurement")
    batch_size: int = option(32, "images sampled at once", kind=positive(int), group="measurement")
    inception_weights: str = option("", "Inception for FID; empty looks in torch's hub folder, and where there is none FID is left out", metavar="FILE", group="measurement", identity=False)
    device: str = option("auto", "of the measurements: cpu, cuda or cuda:N", group="measurement", identity=False)

    out: str = option("runs/ablate", "folder of all runs and of report.md", metavar="DIR", group="results", identity=False)
    json: str = common.json_file("results")
    dry_run: bool = option(False, "print the commands that would run and leave", group="results", identity=False)
    # fmt: on


_PAPER: dict[str, Any] = dict(depth=16, tokenizer_steps=100_000, distill_steps=400_000, images=10_000)
ABLATE_PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(depth=4, tokenizer_steps=300, distill_steps=400, images=304),
    "vanilla": _PAPER,
    "paper": _PAPER,
    "paper-512": _PAPER | dict(depth=36),
}


def choose_ablate_preset(typed: dict[str, Any]) -> str:
    """demo with --demo or without --data, paper with it."""
    return "paper" if typed.get("data") and not typed.get("demo") else "demo"
