"""The list of runs as text for 80 columns, and as JSON."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from refocus_ext.counting import duration
from refocus_ext.status.following import following
from refocus_ext.status.health import first_validation, warnings
from refocus_ext.status.run import Run

WIDTH, INDENT = 80, 14


class Entry(NamedTuple):
    """A run, or a folder that is none.

    Attributes:
        why_not: why the folder is no run, as a clause.
    """

    path: Path
    run: Run | None
    why_not: str = ""
    warnings: tuple[str, ...] = ()
    next: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, verify: bool) -> Entry:
        return cls(run.path, run, "", tuple(warnings(run, verify)), tuple(following(run)))

    def lines(self) -> list[str]:
        """Commands are not broken: they are copied."""
        if self.run is None:
            return [f"{self.path}: no run ({self.why_not})"]
        run = self.run
        head = f"{run.path}: {run.command}, preset {run.options.get('preset', 'unknown')}"
        rows = [("state", progress(run)), ("validation", validation(run))]
        if run.ablation:
            rows.append(("part of", f"the ablation in {run.ablation}; its own command goes on with all parts"))
        rows += [("warning", text) for text in self.warnings]
        lines = [head, *(line for name, text in rows for line in _row(name, text))]
        return lines + [
            f"  {'next' if not number else '':<{INDENT - 2}}{line}" for number, line in enumerate(self.next)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        if self.run is None:
            return {"path": str(self.path), "state": "no run", "why": self.why_not}
        run = self.run
        return {
            "path": str(run.path),
            "command": run.command,
            "preset": run.options.get("preset"),
            "ablation": str(run.ablation) if run.ablation else None,
            "state": run.state,
            "step": run.step,
            "steps": run.steps,
            "checkpoint": run.saved,
            "seconds_per_step": seconds_per_step(run),
            "seconds_left": seconds_left(run),
            "validation": {"step": run.records.validated, **run.records.validation} if run.records.validated else None,
            "warnings": list(self.warnings),
            "next": list(self.next),
        }


def seconds_per_step(run: Run) -> float | None:
    """Of a running run, over its last minutes; None if it cannot be told."""
    return run.seen.seconds_per_step() if run.seen and run.state == "running" else None


def seconds_left(run: Run) -> float | None:
    pace = seconds_per_step(run)
    return None if pace is None else max(0, run.steps - run.step) * pace


def progress(run: Run) -> str:
    """'running: step 300 of 500, 2.10 steps/s, 1:35 left'."""
    done = f"step {run.step} of {run.steps}"
    if run.state == "running":
        return f"running: {done}{_pace(run)}"
    if run.state == "finished":
        return f"finished: {run.steps} steps"
    if run.state == "not begun":
        return f"not begun: no step of {run.steps}" + (", its process is gone" if run.killed else "")
    kept = f"resumes after step {run.saved}" if run.saved else "no checkpoint yet: it would begin again"
    return f"{run.state}: {done}; {kept}" + (" (it was killed)" if run.killed else "")


def _pace(run: Run) -> str:
    pace, left = seconds_per_step(run), seconds_left(run)
    if pace is None or left is None:
        if run.by_metrics:
            return f" (its metrics were written {duration(run.now - (run.records.written or run.now))} ago)"
        return "" if run.seen and run.seen.beats else ", before the first step of this start"
    return f", {f'{1 / pace:.2f} steps/s' if pace < 10 else f'{pace:.0f} s/step'}, {duration(left)} left"


def validation(run: Run) -> str:
    """'step 200: prefixes against F_k 30.7 27.9 24.1 dB'."""
    values, step = run.records.validation, run.records.validated
    if step is None:
        due = first_validation(run)
        return "none yet" + (f" (the first is at step {due})" if due and run.step <= due else "")
    parts = _of_tokenizer(values) if run.command == "tokenizer" else _of_distill(values)
    return f"step {step}: {'; '.join(parts) or 'its figures are not known here'}"


def _of_tokenizer(values: dict[str, float]) -> list[str]:
    psnr = _numbered(values, "psnr_prefix{k}_F{k}", "{:.1f}")
    explained = _numbered({name: 100 * value for name, value in values.items()}, "alias_explained{k}", "{:.0f}%")
    parts = [f"prefixes against F_k {psnr} dB"] if psnr else []
    return parts + ([f"alias tokens explain {explained}"] if explained else [])


def _numbered(values: dict[str, float], name: str, shown: str) -> str:
    numbers = range(1, len(values) + 1)
    return " ".join(shown.format(values[name.format(k=k)]) for k in numbers if name.format(k=k) in values)


def _of_distill(values: dict[str, float]) -> list[str]:
    parts = []
    if "ce_student" in values:
        parts.append(f"student's cross-entropy {values['ce_student']:.3f} nats per token")
    if "gap_teacher" in values:
        error = f" +- {values['gap_error']:.3f}" if "gap_error" in values else ""
        parts.append(f"teacher's gap {values['gap_teacher']:.3f}{error}")
    return parts


def _row(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {name:<{INDENT - 2}}", subsequent_indent=" " * INDENT, break_long_words=False
    )
