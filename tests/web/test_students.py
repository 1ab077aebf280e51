"""Which students the page offers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pages import write_students
from run_folders import write_checkpoint

from refocus_ext.errors import UsageError
from refocus_ext.web.students import find_students, find_tokenizer


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    runs = write_students(tmp_path)
    os.utime(runs["distill-a"] / "config.json", (1, 1))
    return runs


def test_the_finished_runs_are_offered_newest_first(runs: dict[str, Path]) -> None:
    assert find_students(()) == {name: Path("runs") / name for name in ("distill-b", "distill-a")}
    next(runs["distill-b"].glob("var_*.pth")).unlink()
    assert list(find_students(())) == ["distill-a"], "an unfinished run is not offered"


def test_an_interrupted_run_comes_after_those_that_have_ended(runs: dict[str, Path]) -> None:
    config = json.loads((runs["distill-b"] / "config.json").read_text())
    config.setdefault("options", {})["steps"] = 10
    (runs["distill-b"] / "config.json").write_text(json.dumps(config))
    write_checkpoint(runs["distill-b"], 10)
    assert list(find_students(())) == ["distill-b", "distill-a"]
    next((runs["distill-b"] / "checkpoints").iterdir()).unlink()
    write_checkpoint(runs["distill-b"], 4)
    assert list(find_students(())) == ["distill-a", "distill-b"]


def test_without_runs_nothing_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_students(()) == {}


def test_a_word_is_a_student_or_a_folder_of_students(runs: dict[str, Path], tmp_path: Path) -> None:
    assert list(find_students(["runs"])) == ["distill-a", "distill-b"]
    assert find_students(["runs/distill-a", "runs"]) == {
        "distill-a": Path("runs/distill-a"),
        "distill-b": Path("runs/distill-b"),
    }
    (tmp_path / "empty").mkdir()
    for word, why in (("nowhere", "nowhere does not exist"), ("empty", "empty")):
        with pytest.raises(UsageError, match=why):
            find_students(["runs", word])


def test_students_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "distill-a").symlink_to(runs["distill-a"])
    assert list(find_students(["runs/distill-a", "old"])) == ["distill-a", "old/distill-a"]


def test_a_tokenizer_must_be_there() -> None:
    with pytest.raises(UsageError, match="/nowhere does not exist"):
        find_tokenizer("/nowhere")
