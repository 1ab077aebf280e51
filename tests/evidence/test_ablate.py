"""The ablation: every row by the project's own commands, measured alike, resumable, and honest about its size."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from conftest import write_images
from inceptions import load_colours
from runs import parsed

from refocus_ext.commands import main
from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.inception import to_uint8
from refocus_ext.evaluation.scores import inception_score
from refocus_ext.evidence.ablation import command as ablate_command
from refocus_ext.evidence.ablation import differences, measure
from refocus_ext.evidence.ablation.measure import thumbnails
from refocus_ext.evidence.ablation.report import difference_lines
from refocus_ext.evidence.ablation.results import Results
from refocus_ext.evidence.ablation.rows import PAPER
from refocus_ext.sampling.alternating import alternating_samples
from refocus_ext.sampling.student import load_student

TOKENIZER = (
    "--image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 --latent-channels 8 --batch-size 4 "
    "--warm-autoencoder 2 --picture-every 4"
)
TINY = (
    "ablate --preset demo --rows baseline,full --depth 2 --tokenizer-steps 4 --distill-steps 4 --points 2 --images 6 "
    "--batch-size 4"
).split()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run(options...)` ablates in this process; returns the exit code and the commands that were launched."""
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "data" / "train" / name, 6, seed=number)
        write_images(tmp_path / "data" / "val" / name, 3, seed=10 + number)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def ablate_(*options: str) -> tuple[int, list[list[str]]]:
        launched: list[list[str]] = []

        def launch(words: list[str]) -> int:
            launched.append(words)
            return main(words)

        monkeypatch.setattr(ablate_command, "launch", launch)
        fixed = [
            "--data",
            str(tmp_path / "data"),
            "--out",
            str(tmp_path / "ablate"),
            "--json",
            str(tmp_path / "a.json"),
        ]
        further = ["--tokenizer-options", TOKENIZER, "--distill-options", "--batch-size 4 --samples 0"]
        return main([*TINY, *fixed, *further, *options]), launched

    return ablate_


def test_rows_are_trained_measured_and_reported(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, launched = run("--seeds", "0,1")
    assert code == 0
    assert [words[0] for words in launched] == ["tokenizer", "distill", "tokenizer", "distill"] * 2
    out = capsys.readouterr().out
    assert "FID and IS are not measured" in out and "| ReFocus-VAR (full) |" in out
    report = (tmp_path / "ablate" / "report.md").read_text()
    assert "2 seeds: this cannot show" in report and "2.89" in report
    assert (tmp_path / "ablate" / "convergence.png").is_file() and (tmp_path / "ablate" / "samples.png").is_file()
    result = json.loads((tmp_path / "a.json").read_text())
    assert [point["step"] for point in result["runs"]["full"][0]["points"]] == [2, 4]
    full = result["rows"]["full"]
    pair = [entry["points"][-1]["thumbnail_fd"] for entry in result["runs"]["full"]]
    assert full["mean"]["thumbnail_fd"] == pytest.approx(sum(pair) / 2)
    assert full["spread"]["thumbnail_fd"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    assert "gap_teacher" in full["mean"] and "gap_teacher" not in result["rows"]["baseline"]["mean"]
    theirs = [entry["points"][-1]["thumbnail_fd"] for entry in result["runs"]["baseline"]]
    expected = scipy.stats.ttest_rel(theirs, pair)
    against = result["rows"]["baseline"]["against"]["full"]["thumbnail_fd"]
    assert against["mean"] == pytest.approx((sum(theirs) - sum(pair)) / 2)
    assert against["mean"] + against["margin"] == pytest.approx(expected.confidence_interval(0.95).high)
    assert full["against"] == {}  # no row here has its tokens and no teacher
    assert "- VAR (baseline) minus ReFocus-VAR (full), thumbnail distance: " in report

    assert run("--seeds", "0,1")[0] == 0  # again: nothing is trained twice
    assert capsys.readouterr().out.count("is already trained for 4 steps; nothing to do") == 8
    assert json.loads((tmp_path / "a.json").read_text()) == result
    assert run("--depth", "3")[0] == 2
    assert "rows must be compared under one budget" in capsys.readouterr().err


def test_results_of_other_machines_are_reported_and_not_trained_again(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each seed in a folder of its own; the report of both needs their results.json alone."""
    files = []
    for seed in (0, 1):
        assert run("--rows", "baseline", "--seeds", str(seed), "--out", str(tmp_path / f"out{seed}"))[0] == 0
        files.append(tmp_path / f"out{seed}" / "results.json")
    apart = [json.loads(file.read_text())["rows"]["baseline"] for file in files]
    shutil.rmtree(tmp_path / "out0" / "baseline-seed0")
    capsys.readouterr()
    both = ["--rows", "baseline", "--known", ",".join(map(str, files)), "--out", str(tmp_path / "both")]
    code, launched = run(*both, "--seeds", "0,1")
    assert code == 0 and not launched
    assert json.loads((tmp_path / "a.json").read_text())["runs"]["baseline"] == [apart[0]["0"], apart[1]["1"]]
    merged = json.loads((tmp_path / "both" / "results.json").read_text())
    assert merged["rows"]["baseline"] == {"0": apart[0]["0"], "1": apart[1]["1"]}
    report = (tmp_path / "both" / "report.md").read_text()
    assert "samples.png" not in report + capsys.readouterr().out and "convergence.png" in report
    assert [words[0] for words in run(*both, "--seeds", "0,1,2")[1]] == ["tokenizer", "distill"]
    kept = json.loads((tmp_path / "both" / "results.json").read_text())["rows"]["baseline"]
    assert list(kept) == ["0", "1", "2"] and kept["0"] == apart[0]["0"]
    assert run(*both, "--images", "4")[0] == 2
    assert "has rows with images = 6, this call has 4; rows must be compared under one" in capsys.readouterr().err
    assert run("--known", str(tmp_path / "a.json"))[0] == 2
    assert "a.json is no results.json of `ablate`" in capsys.readouterr().err


def test_rows_that_differ_in_the_teacher_may_share_a_trained_tokenizer(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds then vary students alone; results of other tokenizers are not mixed in, rows with tokens of their own are refused."""
    run("--rows", "no-teacher", "--out", str(tmp_path / "first"))
    given = tmp_path / "first" / "tokenizer-disk-seed0"
    shared = ["--rows", "no-teacher,ema-stride-4", "--tokenizer", str(given), "--seeds", "0,1"]
    code, launched = run(*shared)
    assert code == 0 and [words[0] for words in launched] == ["distill", "tokenizer", "distill"] * 2
    assert [str(given) in words for words in launched] == [True, False, False] * 2
    assert all(str(given / "vae.pth") in words for words in launched if words[0] == "tokenizer")
    report = (tmp_path / "ablate" / "report.md").read_text()
    assert "the tokenizer tokenizer-disk-seed0 for all and 4 student steps" in report
    assert json.loads((tmp_path / "ablate" / "results.json").read_text())["budget"]["tokenizer"] == str(given)
    capsys.readouterr()
    old, new = (tmp_path / name / "results.json" for name in ("first", "ablate"))
    record = json.loads(old.read_text())
    assert record["budget"].pop("tokenizer") == ""  # as in files from before the option
    old.write_text(json.dumps(record))
    elsewhere = lambda name: ["--rows", "no-teacher", "--out", str(tmp_path / name)]  # noqa: E731
    assert run(*elsewhere("own"), "--known", str(old)) == (0, [])
    assert run(*elsewhere("given"), "--known", str(new), "--tokenizer", f"/moved/{given.name}") == (0, [])
    assert run(*elsewhere("own"), "--known", str(new)) == (2, [])
    assert f"has rows with tokenizer = {given}, this call has none;" in capsys.readouterr().err
    assert run(*elsewhere("given"), "--known", str(old), "--tokenizer", str(given)) == (2, [])
    assert f"has rows with tokenizer = none, this call has {given};" in capsys.readouterr().err
    assert run(*elsewhere("given"), "--tokenizer", str(tmp_path / "none")) == (2, [])
    assert "--tokenizer" in (told := capsys.readouterr().err) and "none does not exist" in told
    assert run("--tokenizer", str(given)) == (2, [])
    assert (
        "and the row baseline needs tokens of its own; give such rows, as in --rows teachers" in capsys.readouterr().err
    )


def test_an_interrupted_command_ends_the_ablation(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("--dry-run")
    monkeypatch.setattr(ablate_command, "launch", lambda words: 143)
    assert main([*TINY, "--out", str(tmp_path / "other")]) == 143
    monkeypatch.setattr(ablate_command, "launch", lambda words: 1)
    assert main([*TINY, "--out", str(tmp_path / "other")]) == 1


@pytest.mark.parametrize(("number", "code"), [("TERM", 143), ("KILL", -9), ("SEGV", -11)])
def test_a_command_that_is_stopped_early_is_as_one_that_saved(
    number: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before its own handlers stand; what does not ask it to stop stays an error."""
    (tmp_path / "run.sh").write_text(f"kill -{number} $$; sleep 9")
    monkeypatch.setattr(ablate_command, "ROOT", tmp_path)
    assert ablate_command.launch(["tokenizer"]) == code


def test_a_killed_command_is_told(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    run("--dry-run")
    monkeypatch.setattr(ablate_command, "launch", lambda words: -9)
    assert main([*TINY, "--out", str(tmp_path / "other")]) == 1
    assert "was killed by SIGKILL, as the system does where memory runs out; rerun" in capsys.readouterr().err


def test_every_row_of_table_2_differs_in_what_its_name_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--demo", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + len(PAPER) and len(PAPER) == 6
    of = {name: next(line for line in lines if f"/{name}-seed0" in line) for name in PAPER}
    assert "tokenizer-none" in of["baseline"] and "--teacher off" in of["baseline"]
    assert "tokenizer-disk" in of["full"] and "--teacher" not in of["full"]
    assert "tokenizer-none" in of["no-refocusing"] and "--teacher" not in of["no-refocusing"]
    assert "tokenizer-disk" in of["no-teacher"] and "--teacher off" in of["no-teacher"]
    assert "tokenizer-gaussian" in of["gaussian"] and "tokenizer-shared" in of["shared-codebook"]
    assert any("--blur gaussian" in line for line in lines) and any("--alias-codebook shared" in line for line in lines)


def test_cross_entropies_compare_between_rows_of_the_same_tokens_only() -> None:
    point = {"step": 4, "thumbnail_fd": 1.0}
    run = lambda ce: {"points": [point], "ce_student": ce}  # noqa: E731
    results = {
        "baseline": [run(2.0)], "full": [run(1.0)], "no-refocusing": [run(1.5)], "no-teacher": [run(1.25)],
    }  # fmt: skip
    summary = {name: differences.summarise(name, results) for name in results}
    of = {name: {other: "ce_student" in d for other, d in row["against"].items()} for name, row in summary.items()}
    assert of == {
        "baseline": {"full": False}, "full": {"no-teacher": True}, "no-refocusing": {"full": False, "baseline": True},
        "no-teacher": {"full": False},
    }  # fmt: skip
    assert summary["full"]["against"]["no-teacher"]["ce_student"] == {"mean": -0.25, "margin": None}
    lines = difference_lines(summary, ["thumbnail_fd"])
    assert (
        "- ReFocus-VAR (full) minus without the teacher, cross-entropy on the same tokens: -0.250 (one seed)" in lines
    )
    seen = [differences.paired([1.0, 2.0, 3.2], other) for other in ([0.9, 1.9, 3.08], [0.0, 2.5, 3.0])]
    assert [abs(d.mean) > d.margin for d in seen if d.margin] == [True, False]


def test_a_teacher_apart_stands_for_none() -> None:
    """Its student is that without a teacher, to the bit, so the row that it gives its teacher needs no other one beside."""
    run = lambda ce: {"points": [{"step": 4, "thumbnail_fd": 1.0}], "ce_student": ce}  # noqa: E731
    results = {"apart": [run(1.5)], "frozen": [run(1.25)], "logits-only": [run(2.0)]}
    against = {name: differences.summarise(name, results)["against"] for name in results}
    assert {name: list(others) for name, others in against.items()} == {
        "apart": [], "frozen": ["apart"], "logits-only": ["apart"],
    }  # fmt: skip
    assert against["frozen"]["apart"]["ce_student"] == {"mean": -0.25, "margin": None}


def test_unknown_rows_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ablate", "--rows", "full,best"])
    assert stop.value.code == 2 and "there is no row 'best'; rows are baseline, full" in capsys.readouterr().err


def test_thumbnails_are_means_of_blocks() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, :4, :4] = 255
    assert thumbnails(image)[0, [0, 1, 64]].tolist() == [2, 0, 2]


def test_with_inception_rows_have_fid_and_inception_score(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "load_inception", load_colours)
    assert run("--rows", "full")[0] == 0
    assert "| row | thumbnail distance | FID* | IS* |" in capsys.readouterr().out
    report = (tmp_path / "ablate" / "report.md").read_text()
    assert "Inception weights that are not the published ones" in report and "*FID* against steps" in report
    (measured,) = json.loads((tmp_path / "a.json").read_text())["runs"]["full"]
    run_folder = tmp_path / "ablate" / "full-seed0"
    student, colours = load_student(run_folder), load_colours("")
    measurement = measure.Measure(None, str(tmp_path / "data"), 6, 4, torch.device("cpu"))
    drawn = torch.cat([to_uint8(images) for images, _ in alternating_samples(student, 6, 4)])
    data = torch.cat([to_uint8(images) for images, _ in measure.reference_images(measurement, student.image_size)])
    moments = [FeatureStatistics(), FeatureStatistics()]
    for statistics, images in zip(moments, (drawn, data), strict=True):
        statistics.update(colours(images))
    last = measured["points"][-1]
    assert last["fid*"] == pytest.approx(frechet_distance(*moments))
    assert last["is*"] == pytest.approx(inception_score(colours.class_logits(colours(drawn))))


def test_json_is_looked_at_before_any_row_is_trained(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, launched = run("--json", str(tmp_path))
    assert code == 2 and not launched
    assert "is a folder; give the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "expected"), [(300, (200, 20)), (120, (40, 4))])
def test_tokenizers_warm_up_as_in_the_measured_tables(
    steps: int, expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ablation = parsed("ablate", "--demo", "--tokenizer-steps", str(steps))
    plan = ablate_command.commands(ablation, Results(ablation, ()))
    options = parsed(*plan[0].words)
    assert (options.warm_autoencoder, options.warmup) == expected


def test_a_signal_ends_the_command_that_runs_and_later_this_one() -> None:
    """While no command runs, measuring, it must not be swallowed."""
    before = signal.getsignal(signal.SIGTERM)
    process = subprocess.Popen(["sleep", "60"])
    with ablate_command.forwarded(process):
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
