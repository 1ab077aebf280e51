"""The report's numbers as plain values: what `--json` holds and what the page is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refocus_ext.evidence.bench.gpu_report.bench import Comparison
from refocus_ext.evidence.bench.gpu_report.turns import Row

Values = dict[str, Any]


def row_values(row: Row, peak_flops: float | None, memory: bool = True) -> Values:
    """A part's numbers: milliseconds, rates in 1/s, bytes, and MFU as a share of 1 where it is known."""
    values: Values = {"name": row.part.name}
    if row.failed:
        return values | {"failed": row.failed}
    low, high = row.spread
    values |= {"ms": 1e3 * row.median, "ms_p10": 1e3 * low, "ms_p90": 1e3 * high, "runs": len(row.seconds)}
    for unit, count in (("images", row.part.images), ("tokens", row.part.tokens)):
        if count:
            values[f"{unit}_per_s"] = count / row.median
    if row.peak and memory:
        values["peak_bytes"] = row.peak
    if row.part.flops:
        values["flops"] = row.part.flops
        if peak_flops:
            values["mfu"] = row.part.flops / row.median / peak_flops
    return values


def comparison_values(comparison: Comparison, rows: list[Row], peak_flops: float | None) -> Values:
    """What the page says of a case that was built."""
    return {
        "title": comparison.title,
        "notes": list(comparison.notes),
        "compared": comparison.compared,
        "rows": [row_values(row, peak_flops, memory=not comparison.host) for row in rows],
    }


def cases_of(report: Mapping[str, Any], kind: str) -> Iterator[Values]:
    yield from (case for case in report["cases"] if case["kind"] == kind)


def row_of(case: Mapping[str, Any], name: str) -> Values | None:
    """The part of this name, if it was measured."""
    return next((row for row in case["rows"] if row["name"] == name and "ms" in row), None)
