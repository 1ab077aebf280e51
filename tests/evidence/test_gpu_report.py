"""`bench --gpu-report`: rehearsed as a whole on a CPU, and what must hold on a GPU: the order of runs, failures, time."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_main

from patches import load_upstream
from refocus_ext.evidence.bench import clock, data
from refocus_ext.evidence.bench.gpu_report import run
from refocus_ext.evidence.bench.gpu_report.bench import Comparison, held_bytes
from refocus_ext.evidence.bench.gpu_report.builders import BUILDERS
from refocus_ext.evidence.bench.gpu_report.card import peak_of
from refocus_ext.evidence.bench.gpu_report.goals import goals
from refocus_ext.evidence.bench.gpu_report.page import page
from refocus_ext.evidence.bench.gpu_report.plan import PAPER, REHEARSAL, Case, Geometry, Plan
from refocus_ext.evidence.bench.gpu_report.results import row_values
from refocus_ext.evidence.bench.gpu_report.turns import Pace, Part, Row, take_turns

CPU = torch.device("cpu")


def report_of(folder: Path, *options: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """The page and the numbers of a rehearsal."""
    files = ("--out", str(folder / "page.md"), "--json", str(folder / "numbers.json"))
    assert run_main("bench", "--gpu-report", "--device", "cpu", *files, *options) == code
    return (folder / "page.md").read_text(), json.loads((folder / "numbers.json").read_text())


def test_every_case_is_rehearsed_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "SIZE", (64, 48))
    text, report = report_of(tmp_path)
    assert text.splitlines()[0] == "**A rehearsal on a CPU at tiny sizes: its numbers mean nothing.**"
    failed = {row["name"]: row["failed"] for case in report["cases"] for row in case["rows"] if "failed" in row}
    upstreams = {} if load_upstream().kind == "submodule" else {"upstream, as it runs", "upstream, tokens given"}
    assert {name for name in failed if "CUDA graph" not in name} == set(upstreams), failed
    left_out = {entry["case"]: entry["why"] for entry in report["not_measured"]}
    assert set(left_out.values()) == {"needs CUDA"}
    assert {case["case"] for case in report["cases"]} | left_out.keys() == {case.name for case in REHEARSAL.cases}
    rows = [row for case in report["cases"] for row in case["rows"] if "ms" in row]
    assert all(0 < row["ms_p10"] <= row["ms"] <= row["ms_p90"] and row["runs"] >= 1 for row in rows)
    assert "speed of sampling against upstream's" in text and "cores busy" in text and "Share of stage 1's step" in text
    assert "| met |" not in text and "| missed |" not in text, "a rehearsal has no verdict"
    assert "mfu" not in json.dumps(report["cases"]), "a CPU's peak is not known"
    assert len(goals(report)) == (4 if not upstreams else 1)
    assert "its numbers mean nothing" in capsys.readouterr().out


def test_a_rehearsals_page_lies_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """performance.md, in the folder of the project, is for a GPU's."""
    monkeypatch.chdir(tmp_path)
    assert run_main("bench", "--gpu-report", "--device", "cpu", "--minutes", "0.0001") == 0
    assert [path.name for path in tmp_path.rglob("*.md")] == ["performance-rehearsal.md"]


def test_both_plans_have_the_same_kinds_of_cases_and_every_kind_a_builder() -> None:
    assert {case.kind for case in PAPER.cases} == {case.kind for case in REHEARSAL.cases} == BUILDERS.keys()
    assert len({case.name for case in PAPER.cases}) == len(PAPER.cases)
    assert PAPER.meant and not REHEARSAL.meant


# ------------------------------------------------------------------------------------------------ turns


def test_parts_take_turns_and_uncounted_runs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    checked: list[None] = []
    time = 0.0
    durations = {"a": iter([50.0, 50.0, 1.0, 3.0, 50.0, 5.0, 7.0]), "b": iter([50.0, 2.0, 2.0, 50.0, 2.0, 2.0])}

    def runs(name: str) -> Callable[[], None]:
        def part() -> None:
            nonlocal time
            order.append(name)
            time += next(durations[name])

        return part

    monkeypatch.setattr(clock.time, "perf_counter", lambda: time)
    parts = [Part(name, runs(name), check=checked.append, settle=name == "a") for name in "ab"]
    rows = take_turns(parts, Pace(turns=2, warm=1, runs=2), CPU, until=float("inf"))
    assert "".join(order) == "aaaabbbaaabbb" and len(checked) == 5, "a settles once"
    assert [row.seconds for row in rows] == [[1.0, 3.0, 5.0, 7.0], [2.0] * 4]
    values = row_values(Row(Part("a", runs("a"), images=8, flops=6.0), rows[0].seconds), peak_flops=3.0)
    assert (values["ms"], values["images_per_s"], values["mfu"]) == (4000.0, 2.0, 0.5)
    assert values["ms_p10"] == pytest.approx(1600) and values["ms_p90"] == pytest.approx(6400)


def test_a_part_that_fails_is_a_line_and_the_others_are_measured() -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def part() -> None:
            raise error

        return part

    inside: list[str] = []

    @contextmanager
    def patches() -> Any:
        inside.append("in")
        try:
            yield
        finally:
            inside.append("out")

    parts = [
        Part("too large", fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")), ready=patches),
        Part("broken", fail(RuntimeError("no kernel image\nis available"))),
        Part("not there", lambda: None, missing="needs the submodule"),
        Part("well", lambda: None),
    ]
    rows = take_turns(parts, Pace(turns=2, warm=1, runs=1), CPU, until=float("inf"))
    assert [row.failed for row in rows[:3]] == ["out of memory", "RuntimeError: no kernel image", "needs the submodule"]
    assert len(rows[3].seconds) == 2 and inside == ["in", "out"]


def test_after_its_time_a_case_still_gives_each_part_one_turn() -> None:
    rows = take_turns(
        [Part(name, lambda: None) for name in "ab"], Pace(turns=3, warm=0, runs=1), CPU, until=float("-inf")
    )
    assert [len(row.seconds) for row in rows] == [1, 1]


def test_what_one_part_holds_is_taken_off_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from refocus_ext.evidence.bench.gpu_report import turns

    class Counting(type(turns.kind_of(CPU))):  # type: ignore[misc]
        def peak_memory(self, device: torch.device) -> int:
            return 100

    monkeypatch.setattr(turns, "kind_of", lambda device: Counting())
    parts = [Part("a", lambda: None, holds=lambda: 30), Part("b", lambda: None, holds=lambda: 5)]
    assert [row.peak for row in take_turns(parts, Pace(1, 0, 1), CPU, until=float("inf"))] == [95, 70]


def test_what_a_training_holds() -> None:
    weight = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.AdamW([weight], fused=True)
    assert held_bytes(optimizer) == 40
    weight.sum().backward()
    optimizer.step()
    assert held_bytes(optimizer) == 164  # two moments, the gradient, and the count of steps


# ------------------------------------------------------------------------------------------------ the run


def planned(monkeypatch: pytest.MonkeyPatch, *cases: Case, **builders: Callable[..., Any]) -> None:
    """In the place of the rehearsal's plan."""
    plan = Plan(Geometry(), cases, Pace(turns=1, warm=0, runs=1), meant=False)
    monkeypatch.setattr(run, "REHEARSAL", plan)
    monkeypatch.setattr(run, "BUILDERS", builders)


def test_what_does_not_fit_the_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = lambda bench: Comparison("quick", [Part("a", lambda: None)])  # noqa: E731
    cases = (Case("long", 100), Case("quick", 1))
    planned(monkeypatch, *cases, long=built, quick=built)
    text, report = report_of(tmp_path, "--minutes", "1")
    assert [case["case"] for case in report["cases"]] == ["quick"]
    assert "- long: needs about 100 s and " in text


def test_a_case_that_cannot_be_built_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: object) -> Comparison:
        raise torch.OutOfMemoryError("CUDA out of memory")

    quick = lambda bench: Comparison("quick", [Part("a", lambda: None)])  # noqa: E731
    planned(monkeypatch, Case("broken", 1), Case("quick", 1), broken=broken, quick=quick)
    text, report = report_of(tmp_path)
    assert "- this case: out of memory" in text and report["cases"][1]["rows"][0]["runs"] == 1


def test_an_interrupted_run_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(bench: object) -> Comparison:
        stop = lambda: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        return Comparison("first", [Part("a", stop), Part("b", lambda: None)])

    def never(bench: object) -> Comparison:
        raise AssertionError("it was interrupted before")

    planned(monkeypatch, Case("first", 1), Case("second", 1), first=first, second=never)
    text, report = report_of(tmp_path, code=143)
    assert [row["name"] for row in report["cases"][0]["rows"]] == ["a"]
    assert "- second: interrupted" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tiny"], "--tiny is an option of --gpu-report"),
        (["--gpu-report", "--batch-size", "4"], "does not read --batch-size"),
        (["--gpu-report", "--section", "data"], "does not read --section"),
        (["--gpu-report", "--out", "/dev"], "--out: /dev is a folder"),
    ],
)
def test_wrong_options_are_refused(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("bench", "--device", "cpu", *options) == 2
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the page

HEADER = {"card": "NVIDIA H100 80GB HBM3", "command": "bash run.sh bench --gpu-report"}


def measured(name: str, ms: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "ms": ms, "ms_p10": ms, "ms_p90": ms, "runs": 3, **more}


def step_report(**header: Any) -> dict[str, Any]:
    rows = [
        measured("upstream, as it runs", 200.0, peak_bytes=40 * 2**30),
        measured("upstream, tokens given", 100.0, peak_bytes=39 * 2**30),
        measured("ours, with teacher", 120.0, peak_bytes=20 * 2**30, images_per_s=266.7, mfu=0.4),
    ]
    case: dict[str, Any] = {
        "case": "step",
        "kind": "step",
        "sizes": {"depth": 16, "batch": 32},
        "title": "Step",
        "rows": rows,
    }
    case |= {"notes": [], "compared": True, "seconds": 1.0}
    return {"header": HEADER | header, "meant": True, "peak_flops": 989e12, "cases": [case], "not_measured": []}


def test_goals_are_met_or_missed() -> None:
    found = [(goal.value, goal.met) for goal in goals(step_report())]
    assert found == [(0.6, True), (1.2, False), (0.5, True), (0.4, True)]
    text = page(step_report())
    assert text.startswith("# Speed on one NVIDIA H100 80GB HBM3\n")
    assert "| d16, batch 32: the same with tokens given to upstream | 1.20x | at most 1.15x | missed |" in text
    assert "| ours, with teacher | 120.0 | 120.0 to 120.0 | 0.60x | 266.7 | 20.0 | 40.0% |" in text


def test_sampling_is_held_to_its_goal_at_batch_8() -> None:
    rows = [measured("upstream's sampler", 300.0), measured("ours, as `sample` runs it", 100.0)]
    cases = [{"kind": "sampling", "sizes": {"depth": 16, "batch": batch}, "rows": rows} for batch in (1, 8)]
    assert [(goal.value, goal.met) for goal in goals({"cases": cases})] == [(3.0, True)]


def test_a_card_that_is_not_known_has_no_mfu() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12 and peak_of("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_of("NVIDIA Q9000") is None and peak_of("CPU") is None
    text = page(step_report(card="NVIDIA Q9000") | {"peak_flops": None})
    assert "peak of NVIDIA Q9000 is not in this project's table, so no MFU is given" in text
