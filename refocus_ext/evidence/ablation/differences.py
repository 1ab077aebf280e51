"""Rows compared seed by seed: mean, and a confidence interval from Student's t."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refocus_ext.evidence.ablation.rows import TABLE


@dataclass(frozen=True)
class Difference:
    """The difference of two rows over the same seeds: its mean, and half the width of the 95% confidence interval (Student's
    t), None for one seed."""

    mean: float
    margin: float | None


def summarise(name: str, results: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of each number of the last point, and its differences from other rows.

    "against" maps a row to the differences (this row's number minus the other's, seed by seed): of its distances from the
    full method, and of the cross-entropy from rows of the same tokens whose student no teacher taught, and from the row's
    controls.
    """
    row, values = TABLE[name], last_numbers(results[name])
    against: dict[str, dict[str, Any]] = {}
    if name != "full" and "full" in results:
        theirs = last_numbers(results["full"])
        distances = [key for key in values if not key.startswith(("ce_", "gap_"))]
        against["full"] = {key: dataclasses.asdict(paired(values[key], theirs[key])) for key in distances}
    for other in results:
        same_tokens = TABLE[other].tokenizer.tokens == row.tokenizer.tokens
        untaught = same_tokens and row.has_teacher and not TABLE[other].teaches and other != name
        if untaught or other in row.controls:
            theirs = last_numbers(results[other])
            against[other] = {"ce_student": dataclasses.asdict(paired(values["ce_student"], theirs["ce_student"]))}
    return {
        "title": row.title,
        "tokenizer": row.tokenizer.tokens,
        "gap": row.gap,
        "mean": {key: statistics.fmean(entry) for key, entry in values.items()},
        "spread": {key: statistics.stdev(entry) if len(entry) > 1 else None for key, entry in values.items()},
        "against": against,
        "paper": {"fid": row.fid, "is": row.inception_score},
    }


def last_numbers(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Each number of the last point, one value per seed."""
    last = [run["points"][-1] | {key: value for key, value in run.items() if key != "points"} for run in runs]
    return {key: [entry[key] for entry in last] for key in last[0] if isinstance(last[0][key], float)}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Seed by seed, so that effects common to a seed cancel."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    margin = None
    if n > 1:
        from scipy.stats import t

        margin = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return Difference(statistics.fmean(differences), margin)
