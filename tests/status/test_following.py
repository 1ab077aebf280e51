"""What status says to type resumes that run, or begins what comes after it."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from run_folders import write_folder, write_sign
from runs import parsed

from refocus_ext.status.following import following, rebuilt_line, resume_line
from refocus_ext.status.run import read_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def after(run: Path) -> list[str]:
    return following(read_run(run, time.time()))


def test_after_a_finished_run() -> None:
    tokenizer = write_folder(Path("runs/my tokenizer"), "tokenizer", "--steps", "5", steps=5, saved=5)
    assert after(tokenizer) == ["bash run.sh distill --tokenizer 'runs/my tokenizer'"]
    without = write_folder(Path("runs/plain"), "tokenizer", "--steps", "5", "--alias", "off", steps=5, saved=5)
    assert after(without) == ["bash run.sh distill --tokenizer runs/plain --teacher off"]
    student = write_folder(Path("runs/d4"), "distill", "--depth", "4", "--steps", "5", steps=5, saved=5)
    assert after(student) == [
        "bash run.sh sample --student runs/d4",
        "bash run.sh export --run runs/d4 --to exports/d4",
    ]
    for line in (*after(tokenizer), *after(without), *after(student)):
        parsed(*shlex.split(line)[2:])  # every option exists
    Path("runs/ablate.json").write_text("{}")
    assert after(tokenizer) == [], "the ablation itself goes on"


def test_an_unfinished_run_is_resumed_as_it_was_typed() -> None:
    run = write_folder(Path("runs/a"), "tokenizer", "--steps", "9", steps=3, saved=3)
    assert after(run) == ["bash run.sh tokenizer --steps 9 --out runs/a"]
    write_sign(run)
    assert after(run) == [], "it is running"


def test_a_moved_run_is_resumed_where_it_is(tmp_path: Path) -> None:
    write_folder(Path("runs/a"), "tokenizer", "--steps", "9", steps=3, saved=3).rename("runs/a.1")
    line = resume_line(read_run(Path("runs/a.1"), 0))
    assert parsed(*shlex.split(line)[2:]).out == "runs/a.1"


def test_a_run_of_another_folder_is_resumed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("runs/a"), "tokenizer", "--steps", "9", steps=3, saved=3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    line = resume_line(read_run(Path("../runs/a"), 0))
    assert line.startswith(f"cd {tmp_path} && bash /") and line.endswith("run.sh tokenizer --steps 9 --out runs/a")


@pytest.mark.parametrize(
    "words",
    [
        "tokenizer --steps 9",
        "tokenizer --data a/b --preset vanilla --batch-size 16 --patch-nums 1,2,3 --image-size 48 --lr 3e-5",
        "tokenizer --grad-checkpoint --accumulate auto --alias off --blur none --gan 0",
        "tokenizer --preset paper --data x --steps 1000",
        "distill --depth 4 --data x --preset paper --teacher ema --teacher-aliases none",
        "distill --depth 8 --hflip --samples 0 --tokenizer a/b.pth --patch-nums 1,2,3 --log none",
    ],
)
def test_a_run_of_an_earlier_version_is_resumed_from_its_options(words: str) -> None:
    options = parsed(*words.split(), "--out", "runs/old", "--resume", "never", "--device", "cpu")
    stored = json.loads(json.dumps(options.to_dict()))
    line = rebuilt_line(words.split()[0], stored)
    again = parsed(*shlex.split(line)[2:], "--out", "runs/old")
    assert again.to_dict() | {"resume": "never"} == options.to_dict()
    assert again.identity() == options.identity()
    assert len(shlex.split(line)) < 30, "what the preset gives is not repeated"


def test_its_folder_is_named(tmp_path: Path) -> None:
    run = write_folder(Path("runs/a"), "tokenizer", "--steps", "9", steps=3, saved=3, recorded=False)
    assert resume_line(read_run(run, 0)).endswith(" --out runs/a")
