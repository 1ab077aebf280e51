"""What follows from several cases together: a part's share of a step, and the cores that a step's images need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refocus_ext.evidence.bench.gpu_report.cases.launches import ALIAS, PYRAMID, QUANTIZER
from refocus_ext.evidence.bench.gpu_report.cases.student_step import TAUGHT
from refocus_ext.evidence.bench.gpu_report.cases.tokenizer_step import PLAIN
from refocus_ext.evidence.bench.gpu_report.results import Values, cases_of, row_of


def answers(report: Mapping[str, Any], case: Values) -> list[str]:
    """Sentences below the table of a case."""
    if case["kind"] == "small launches":
        return shares(report, case)
    if case["kind"] == "loading":
        return needs(report, case)
    return []


def shares(report: Mapping[str, Any], case: Values) -> list[str]:
    """Each part as a share of stage 1's step at the same batch."""
    batch = case["sizes"]["batch"]
    steps = (row_of(step, PLAIN) for step in cases_of(report, "stage 1") if step["sizes"]["batch"] == batch)
    step = next((row for row in steps if row), None)
    if step is None:
        return ["Stage 1's step at this batch was not measured, so their share of it is not known."]
    found = ((name, row_of(case, name)) for name in (PYRAMID, ALIAS, QUANTIZER))
    words = ", ".join(f"{name} {100 * row['ms'] / step['ms']:.1f}%" for name, row in found if row)
    return [f"Share of stage 1's step (batch {batch}, {step['ms']:.0f} ms): {words}."]


def needs(report: Mapping[str, Any], case: Values) -> list[str]:
    """How many cores each step would keep busy with reading images from a folder."""
    ours = next((row for row in case["rows"] if row["name"].startswith("ours") and "ms" in row), None)
    if ours is None:
        return []
    steps = [("stage 1", case_, row_of(case_, PLAIN)) for case_ in cases_of(report, "stage 1")]
    steps += [("stage 2 without a cache", case_, row_of(case_, TAUGHT)) for case_ in cases_of(report, "step")]
    return [
        f"{name}, {_sizes(step['sizes'])}: {row['images_per_s']:.0f} images/s would keep "
        f"{row['images_per_s'] / ours['images_per_s']:.1f} cores busy."
        for name, step, row in steps
        if row
    ]


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"d{value}" if size == "depth" else f"{size} {value}" for size, value in sizes.items())
