"""The goals of this project's speed on a GPU, each beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from refocus_ext.evidence.bench.gpu_report.cases.sampling import OURS, STOCK
from refocus_ext.evidence.bench.gpu_report.cases.student_step import TAUGHT, UPSTREAM, UPSTREAM_TOKENS
from refocus_ext.evidence.bench.gpu_report.results import Values, cases_of, row_of

SAMPLING_BATCH = 8


class Goal(NamedTuple):
    """A measured number and its limit; `most` says which side of the limit is wanted."""

    what: str
    value: float
    limit: float
    most: bool
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.most else self.value >= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """what, measured, wanted, met or missed."""
        wanted = f"{'at most' if self.most else 'at least'} {self._text(self.limit)}"
        return self.what, self._text(self.value), wanted, "met" if self.met else "missed"

    def _text(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.unit == "%" else f"{value:.2f}x"


def goals(report: Mapping[str, Any]) -> list[Goal]:
    """Those whose numbers were measured."""
    steps = (goal for case in cases_of(report, "step") for goal in _of_step(case))
    drawn = (goal for case in cases_of(report, "sampling") for goal in _of_sampling(case))
    return [*steps, *drawn]


def _of_step(case: Values) -> Iterator[Goal]:
    ours, whole, given = (row_of(case, name) for name in (TAUGHT, UPSTREAM, UPSTREAM_TOKENS))
    where = f"d{case['sizes']['depth']}, batch {case['sizes']['batch']}: "
    if ours and whole:
        yield Goal(f"{where}step with teacher against upstream's as it runs", ours["ms"] / whole["ms"], 1.0, True)
    if ours and given:
        yield Goal(f"{where}the same with tokens given to upstream", ours["ms"] / given["ms"], 1.15, True)
    if ours and whole and ours.get("peak_bytes") and whole.get("peak_bytes"):
        ratio = ours["peak_bytes"] / whole["peak_bytes"]
        yield Goal(f"{where}peak memory with teacher against upstream's as it runs", ratio, 0.8, True)
    if ours and "mfu" in ours:
        yield Goal(f"{where}MFU of the step with teacher", ours["mfu"], 0.35, False, "%")


def _of_sampling(case: Values) -> Iterator[Goal]:
    ours, stock = row_of(case, OURS), row_of(case, STOCK)
    if ours and stock and case["sizes"]["batch"] == SAMPLING_BATCH:
        where = f"d{case['sizes']['depth']}, batch {SAMPLING_BATCH}: "
        yield Goal(f"{where}speed of sampling against upstream's", stock["ms"] / ours["ms"], 2.0, False)
