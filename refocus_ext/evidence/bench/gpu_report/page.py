"""The report as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refocus_ext.evidence.bench.gpu_report.answers import answers
from refocus_ext.evidence.bench.gpu_report.goals import goals
from refocus_ext.evidence.bench.gpu_report.results import Values

HEAD = ("", "ms", "10th to 90th percentile", "time", "images/s", "tokens/s", "peak GiB", "MFU")


def page(report: Mapping[str, Any]) -> str:
    """The whole page; numbers as they were measured, and what was not measured by name."""
    lines = [*opening(report), *facts(report["header"]), *wanted(report)]
    for case in report["cases"]:
        lines += section(report, case)
    return "\n".join([*lines, *left_out(report)]) + "\n"


def opening(report: Mapping[str, Any]) -> list[str]:
    card = report["header"]["card"]
    if report["meant"]:
        lines = [f"# Speed on one {card}", ""]
    else:
        device = "a CPU" if card == "CPU" else card
        lines = [f"**A rehearsal on {device} at tiny sizes: its numbers mean nothing.**", "", "# Speed, rehearsed", ""]
    lines += [
        "Printed by the command below. Times are medians of single runs, each between two waits for the device, after uncounted "
        "ones; the parts of a table took turns. `time` is against the first line of its table. Peak memory is all that PyTorch had "
        "allocated at once. Networks have random weights, in mixed precision with TF32 beside it unless a line says otherwise."
    ]
    if report["meant"] and report["peak_flops"] is None:
        lines += ["", f"The bf16 peak of {card} is not in this project's table, so no MFU is given."]
    return [*lines, ""]


def facts(header: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_quoted(name, value)} |" for name, value in header.items()), ""]


def _quoted(name: str, value: Any) -> str:
    return f"`{value}`" if name == "command" else str(value)


def wanted(report: Mapping[str, Any]) -> list[str]:
    """The goals' table."""
    rows = [goal.cells() for goal in goals(report)]
    if not rows:
        return []
    return ["## Goals", "", *table(("", "measured", "wanted", ""), rows), ""]


def section(report: Mapping[str, Any], case: Values) -> list[str]:
    """A case: its table and what is said about it."""
    lines = [f"## {case['title']}", ""]
    measured = [row for row in case["rows"] if "ms" in row]
    if measured:
        rows = [cells(row, measured[0]["ms"] if case["compared"] else None) for row in measured]
        used = [i for i in range(len(HEAD)) if i == 0 or any(row[i] for row in rows)]
        lines += [*table([HEAD[i] for i in used], [[row[i] for i in used] for row in rows]), ""]
    failed = [f"- {row['name'] or 'this case'}: {row['failed']}" for row in case["rows"] if "failed" in row]
    said = [*case.get("notes", ()), *answers(report, case)]
    return [*lines, *([*failed, ""] if failed else []), *([*said, ""] if said else [])]


def cells(row: Values, first: float | None) -> list[str]:
    """Cells of HEAD.

    Args:
        first: milliseconds of the table's first line; None compares nothing.
    """
    gib, mfu = row.get("peak_bytes"), row.get("mfu")
    return [
        row["name"],
        _digits(row["ms"]),
        f"{_digits(row['ms_p10'])} to {_digits(row['ms_p90'])}",
        f"{row['ms'] / first:.2f}x" if first else "",
        f"{row['images_per_s']:,.1f}" if "images_per_s" in row else "",
        f"{row['tokens_per_s']:,.0f}" if "tokens_per_s" in row else "",
        f"{gib / 2**30:.1f}" if gib else "",
        f"{100 * mfu:.1f}%" if mfu else "",
    ]


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.{0 if milliseconds >= 1000 else 1 if milliseconds >= 10 else 2}f}"


def left_out(report: Mapping[str, Any]) -> list[str]:
    if not report["not_measured"]:
        return []
    return ["## Not measured", "", *(f"- {entry['case']}: {entry['why']}" for entry in report["not_measured"])]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
