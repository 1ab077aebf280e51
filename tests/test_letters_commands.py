"""From drawn letters to a student that is measured, by the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import TINY, parsed, run_main

from patches.sampling import Guidance
from refocus_ext.errors import UsageError
from refocus_ext.evidence.ablation import command as ablate_command
from refocus_ext.evidence.letters import command as letters_command
from refocus_ext.evidence.letters.command import same
from refocus_ext.evidence.letters.measures import Batch
from refocus_ext.images.sources import letters
from refocus_ext.sampling.alternating import alternating_samples
from refocus_ext.sampling.student import Student

TOKENIZER = [word for word in TINY if word not in ("--preset", "demo")]
DISTILL = "distill --data letters --depth 2 --steps 2 --batch-size 4 --crops 1 --save-every 2 --picture-every 2 --samples 2".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and only two letters of each class."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        monkeypatch.setitem(letters.PER_CLASS, split, 2)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out + captured.err


def test_letters_go_through_all_commands(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Guidance] = []

    def draw(student: Student, images: int, batch: int, seed: int, guidance: Guidance) -> Iterator[Batch]:
        drawn.append(guidance)
        return alternating_samples(student, images, batch, seed, guidance)

    monkeypatch.setattr(letters_command, "alternating_samples", draw)
    assert run_main("tokenizer", *TOKENIZER, "--data", "letters", "--workers", "1") == 0
    assert "preset letters: training on letters" in told(capsys)
    run = Path("runs/tokenizer-letters")
    assert json.loads((run / "classes.json").read_text()) == list(letters.LEVELS["letters"].classes)
    assert run_main(*DISTILL) == 0
    out = told(capsys)
    assert "cross-entropy on 52 held-out images" in out
    assert (run / "tokens").is_dir(), "letters have a cache as any images"
    student = "runs/distill-letters-d2"
    assert run_main("sample", "--student", student, "--classes", "A,Q", "--count", "2") == 0
    assert run_main("eval", "--tokenizer", str(run)) == 0
    assert "on 52 images of letters/val" in told(capsys)
    for words in (("--student", student, "--cfg", "0,1.5"), ("--tokenizer", str(run))):
        assert run_main("legibility", *words, "--images", "26", "--batch-size", "13", "--json", "a.json") == 0
        rows = json.loads(Path("a.json").read_text())
        assert rows["fresh letters"]["legibility"] > 0.9
        if "--student" in words:
            names = ["distill-letters-d2, cfg 0", "distill-letters-d2, cfg 1.5", "fresh letters"]
            assert list(rows) == names, "one or several, by the name of the folder"
    assert [name for name in rows if name.startswith("state")] == ["state 1, 1 token", "state 2, 5 tokens"]
    both = ("--student", student, f"{student}/var_d2.pth", "--cfg", "0,3", "--picture", "curves.png")
    assert run_main("legibility", *both, "--images", "26", "--json", "a.json") == 0
    assert [guidance.cfg for guidance in drawn] == [0, 1.5, 0, 3, 0, 3] and {guidance.top_p for guidance in drawn} == {
        0.96
    }
    measured = json.loads(Path("a.json").read_text())
    assert measured["distill-letters-d2, cfg 3"] == measured["var_d2.pth, cfg 3"] and len(measured) == 5
    with Image.open("curves.png") as picture:
        assert picture.width > 500
    told(capsys)
    assert run_main("tokenizer", *TOKENIZER, "--data", "letters") == 0
    assert "already trained" in told(capsys)
    config = json.loads(Path(student, "config.json").read_text())
    config["options"]["data"] = ""  # as a run without --data has it
    Path(student, "config.json").write_text(json.dumps(config))
    assert run_main("legibility", "--student", student) == 2
    assert "does not say which letters it was trained on; give --data." in told(capsys)
    assert run_main("legibility", "--student", student, "--data", "words") == 2
    assert "has the classes A, B, C, .., and words has ALP, BOX, CUP, .." in told(capsys)


def test_students_that_are_measured_together_have_the_same_letters() -> None:
    assert same("image size", {"a": 64, "b": 64}) == 64
    with pytest.raises(UsageError, match="--student b has the image size 32 and a has 64; measure them by two calls"):
        same("image size", {"a": 64, "b": 32})


def test_the_ablation_measures_letters(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_command, "launch", lambda words: run_main(*words))
    options = " ".join(TOKENIZER[: TOKENIZER.index("--steps")])
    words = "ablate --data letters --rows full --depth 2 --tokenizer-steps 4 --distill-steps 2 --points 1 --images 26".split()
    further = [
        "--tokenizer-options",
        options + " --warm-autoencoder 2",
        "--distill-options",
        "--batch-size 4 --samples 0 --crops 1",
    ]
    assert run_main(*words, *further, "--json", "a.json") == 0
    (run,) = json.loads(Path("a.json").read_text())["runs"]["full"]
    (point,) = run["points"]
    assert {"legibility", "letters_fd", "precision", "recall", "edges", "moire"} <= set(point)
    report = Path("runs/ablate/report.md").read_text()
    assert "| legibility |" in report and "letter distance against steps" in report


def test_runs_of_letters_have_folders_of_their_own() -> None:
    assert parsed("tokenizer").out == "runs/tokenizer"
    assert parsed("tokenizer", "--data", "letters-unseen").out == "runs/tokenizer-letters"
    assert parsed("tokenizer", "--data", "words", "--out", "x").out == "x"
    options = parsed("distill", "--data", "long-words")
    assert (options.tokenizer, options.preset) == ("runs/tokenizer-long-words", "letters-128")
    assert parsed("distill").tokenizer == "runs/tokenizer"
