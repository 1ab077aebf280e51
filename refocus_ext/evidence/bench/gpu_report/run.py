"""`bash run.sh bench --gpu-report`: measures the cases of a plan within a time budget, and writes after each of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from patches import Upstream
from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.interruption import Interruption
from refocus_ext.errors import RunFailed, named
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.builders import BUILDERS
from refocus_ext.evidence.bench.gpu_report.card import header, peak_of
from refocus_ext.evidence.bench.gpu_report.goals import goals
from refocus_ext.evidence.bench.gpu_report.page import page
from refocus_ext.evidence.bench.gpu_report.plan import PAPER, REHEARSAL, Case, Plan
from refocus_ext.evidence.bench.gpu_report.results import Values, comparison_values
from refocus_ext.evidence.bench.gpu_report.turns import free, in_a_line, take_turns
from refocus_ext.evidence.bench.options import BenchOptions
from refocus_ext.storage.atomic import written_beside
from refocus_ext.storage.results import results_file, write_numbers

TOO_LATE, NOT_HERE, STOPPED = "needs about {needs:.0f} s and {left:.0f} s were left", "needs CUDA", "interrupted"


def main(options: BenchOptions, upstream: Upstream, device: torch.device) -> int:
    """Runs the command; returns its exit code: 0, or 128 + a signal's number where it was interrupted."""
    plan = REHEARSAL if options.tiny or device.type == "cpu" else PAPER
    with named("--out"):
        out = results_file(options.out or ("performance.md" if plan.meant else "runs/performance-rehearsal.md"))
    with named("--json"):
        json_file = results_file(options.json) if options.json else None
    if not plan.meant:
        print("a rehearsal at tiny sizes: its numbers mean nothing")
    with Interruption("writing what is measured so far") as interruption:
        run = Run(plan, Bench(upstream, device, plan.geometry), 60 * options.minutes, interruption, out, json_file)
        with kind_of(device).tuned(tf32=True):
            run.measure()
    for goal in goals(run.report) if plan.meant else ():
        print("  ".join(goal.cells()))
    print(f"the report is in {out}" + (f", its numbers in {json_file}" if json_file else ""))
    return interruption.code(interruption.flags())


class Run:
    """A plan being measured.

    Args:
        seconds: the budget, from now on.
        out, json_file: the page and the numbers, written after every case.
    """

    def __init__(
        self, plan: Plan, bench: Bench, seconds: float, interruption: Interruption, out: Path, json_file: Path | None
    ) -> None:
        self.plan, self.bench, self.interruption, self.out, self.json_file = plan, bench, interruption, out, json_file
        self.began = time.monotonic()
        self.end = self.began + seconds
        facts = header(bench.upstream, bench.device)
        self.report: Values = {
            "header": facts, "meant": plan.meant, "peak_flops": peak_of(facts["card"]), "cases": [], "not_measured": [],
        }  # fmt: skip

    def measure(self) -> None:
        """Every case that the time, the device and the user allow."""
        self.write()
        for case in self.plan.cases:
            if why := self.reason_against(case):
                self.leave_out(case, why)
            else:
                self.say(case.name)
                measured = self.one(case)
                if measured["rows"]:
                    self.report["cases"].append(measured)
                    self.show(measured)
                else:
                    self.leave_out(case, STOPPED)
            self.write()

    def leave_out(self, case: Case, why: str) -> None:
        self.report["not_measured"].append({"case": case.name, "why": why})
        self.say(f"{case.name}: not measured: {why}")

    def reason_against(self, case: Case) -> str:
        """Why a case is not measured; empty if it is."""
        left = self.end - time.monotonic()
        if self.stopped():
            return STOPPED
        if case.cuda and self.bench.device.type != "cuda":
            return NOT_HERE
        return TOO_LATE.format(needs=case.needs, left=max(0.0, left)) if case.needs > left else ""

    def one(self, case: Case) -> Values:
        """A case's numbers; if it cannot be built, the reason."""
        began = time.monotonic()
        try:
            told = self.measured(case, min(began + case.needs, self.end))
        except Exception as error:
            told = {"title": case.name, "rows": [{"name": "", "failed": in_a_line(error)}]}
        free(self.bench.device)  # what the case held is referenced no more
        return {"case": case.name, "kind": case.kind, "sizes": case.sizes, "seconds": time.monotonic() - began} | told

    def measured(self, case: Case, until: float) -> Values:
        with built(self.bench, case) as comparison:
            device = torch.device("cpu") if comparison.host else self.bench.device
            rows = take_turns(comparison.parts, self.plan.pace, device, until, self.stopped)
            return comparison_values(comparison, rows, self.report["peak_flops"])

    def stopped(self) -> bool:
        return self.interruption.signal is not None

    # ------------------------------------------------------------------ told and written

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:5.0f} s  {text}", flush=True)

    def show(self, case: Values) -> None:
        for row in case["rows"]:
            told = row.get("failed") or f"{row['ms']:.2f} ms ({row['ms_p10']:.2f} to {row['ms_p90']:.2f})"
            print(f"           {row['name'] or 'the case failed'}: {told}", flush=True)

    def write(self) -> None:
        """The page and the numbers so far, each completely or not at all.

        Raises:
            RunFailed: a file cannot be written.
        """
        if self.json_file:
            with named("--json"):
                write_numbers(
                    self.json_file,
                    self.report | {"goals": [goal._asdict() | {"met": goal.met} for goal in goals(self.report)]},
                )
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(self.out) as beside:
                beside.write_text(page(self.report))
        except OSError as error:
            raise RunFailed(f"--out: {self.out} could not be written ({error.strerror}).") from error


@contextlib.contextmanager
def built(bench: Bench, case: Case) -> Iterator[Comparison]:
    """The comparison of a case, while it is measured."""
    made: Any = BUILDERS[case.kind](bench, **case.sizes)
    if isinstance(made, Comparison):
        yield made
        return
    with made as comparison:
        yield comparison
