"""Options of `ablate`. Imports no torch, so that help is instant."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from refocus_ext.evidence.ablation.rows import GROUPS, PAPER, ROWS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import int_list, positive

WHAT = Heading("what to train")
BUDGET = Heading("budget")
MEASURE = Heading("measurement")
RESULTS = Heading("results")


def row_list(text: str) -> tuple[str, ...]:
    """'baseline,full' -> ('baseline', 'full'); a group stands for its rows, and a row that is named twice counts once."""
    names = [part.strip() for part in text.split(",")]
    if unknown := [name for name in names if name not in (*ROWS, *GROUPS)]:
        raise argparse.ArgumentTypeError(f"there is no row '{unknown[0]}'; rows are {', '.join(ROWS)}")
    return tuple(dict.fromkeys(row for name in names for row in GROUPS.get(name, (name,))))


def file_list(text: str) -> tuple[str, ...]:
    """'a.json,b.json' -> ('a.json', 'b.json')."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class AblateOptions(Options):
    """
    Trains the rows of Table 2 (plain VAR, the full method, and the full method without one of its parts) under one
    budget, measures them in the same way and writes a report that sets them beside the paper's numbers. Run the same
    command again to resume an interrupted ablation.
    """

    stage = "ablate"

    preset: str = shared.preset(WHAT, "preset of both stages; demo without --data, paper with it")
    demo: bool = WHAT(False, "the preset demo: minutes on two CPU cores", identity=False)
    data: str = WHAT(
        "", "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it the demo photographs", metavar="DIR"
    )
    rows: tuple[str, ...] = WHAT(
        PAPER,
        f"which rows, of {', '.join(ROWS)}; paper stands for the first {len(PAPER)}, teachers for those that differ in the teacher",
        row_list,
        metavar="NAME,..",
        identity=False,
    )
    seeds: tuple[int, ...] = WHAT(
        (0,), "one run of every row for each; a spread needs several", int_list, identity=False
    )
    tokenizer: str = WHAT(
        "",
        "a trained tokenizer for all rows, where they differ in the teacher alone (--rows teachers): seeds then vary students "
        "only; without it each seed trains its own",
        metavar="RUN",
    )
    depth: int = BUDGET(None, "D of the students", positive(int))
    tokenizer_steps: int = BUDGET(None, "steps of each tokenizer", positive(int))
    distill_steps: int = BUDGET(None, "steps of each student", positive(int))
    tokenizer_options: str = BUDGET(
        "",
        "further options of `tokenizer` for all rows, in quotes; those that a row changes stay as the row has them",
        metavar="WORDS",
    )
    distill_options: str = BUDGET("", "the same of `distill`", metavar="WORDS")

    points: int = MEASURE(4, "checkpoints of each student that are measured, the last one included", positive(int))
    images: int = MEASURE(None, "images sampled at each point, and at most as many taken from the data", positive(int))
    batch_size: int = MEASURE(32, "images sampled at once", positive(int))
    inception_weights: str = MEASURE(
        "",
        "Inception for FID; without this option it is taken from torch's hub folder, and FID is left out if it is not there",
        metavar="FILE",
        identity=False,
    )
    device: str = MEASURE("auto", "of the measurements: cpu, cuda or cuda:N", identity=False)

    out: str = RESULTS("runs/ablate", "folder of all runs and of report.md", metavar="DIR", identity=False)
    known: tuple[str, ...] = RESULTS(
        (),
        "results.json of other calls with the same budget: what they measured is reported and not trained again",
        file_list,
        metavar="FILE,..",
        identity=False,
    )
    json: str = shared.json_file(RESULTS)
    dry_run: bool = shared.dry_run(RESULTS, "print the commands that would run and exit")

    @classmethod
    def choose_preset(cls, typed: Mapping[str, object]) -> str:
        """demo with --demo or without --data, paper with it."""
        return "demo" if typed.get("demo") else super().choose_preset(typed)
