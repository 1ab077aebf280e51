"""The state of a run: what its folder shows, for every way in which a run can stop."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import beats, write_folder, write_sign

from refocus_ext.engine.life_sign import PATIENCE
from refocus_ext.status.run import NoRun, read_run

WORDS = ("tokenizer", "--steps", "10")


def state(run: Path) -> str:
    return read_run(run, time.time()).state


def test_states_without_a_process(tmp_path: Path) -> None:
    assert state(write_folder(tmp_path / "a", *WORDS)) == "not begun"
    assert state(write_folder(tmp_path / "b", *WORDS, steps=0)) == "not begun"
    assert state(write_folder(tmp_path / "c", *WORDS, steps=3)) == "interrupted"
    assert state(write_folder(tmp_path / "d", *WORDS, steps=3, saved=3)) == "interrupted"
    assert state(write_folder(tmp_path / "e", *WORDS, steps=10, saved=10)) == "finished"
    assert state(write_folder(tmp_path / "f", *WORDS, steps=10, saved=8)) == "interrupted", "killed before it saved"
    assert state(write_folder(tmp_path / "g", *WORDS, steps=10, weights={"vae.pth": "1"})) == "finished", "tidied up"


def test_a_living_process_is_a_running_run(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=10, saved=10)
    write_sign(run)
    assert state(run) == "running", "it may be drawing its last picture"
    write_sign(run, started="1")
    assert state(run) == "finished"


def test_a_killed_run_is_interrupted_and_one_of_another_machine_silent(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=5, saved=4)
    write_sign(run, started="1", beats=beats(1.0, 1, 5))
    assert state(run) == "interrupted" and read_run(run, time.time()).killed
    write_sign(run, place="elsewhere", beats=beats(1.0, 1, 5))
    assert state(run) == "running" and not read_run(run, time.time()).killed
    write_sign(run, place="elsewhere", beats=beats(1.0, 1, 5, ago=PATIENCE + 1))
    assert state(run) == "no sign of life"
    write_folder(tmp_path / "run", *WORDS, steps=10, saved=10)
    assert state(run) == "finished", "and left its sign behind"


def test_a_run_of_an_earlier_version_runs_if_its_metrics_are_fresh(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=5, saved=4, recorded=False)
    assert state(run) == "running" and read_run(run, time.time()).by_metrics
    old = time.time() - PATIENCE - 1
    os.utime(run / "metrics.jsonl", (old, old))
    assert state(run) == "interrupted"
    assert state(write_folder(tmp_path / "new", *WORDS, steps=5, saved=4)) == "interrupted", "it would have left a sign"


def test_step_and_checkpoint(tmp_path: Path) -> None:
    found = read_run(write_folder(tmp_path / "run", *WORDS, steps=7, saved=6), time.time())
    assert (found.step, found.saved, found.steps, found.ablation) == (7, 6, 10, None)
    assert read_run(write_folder(tmp_path / "lost", *WORDS, saved=6), time.time()).step == 6
    (tmp_path / "ablate.json").write_text("{}")
    assert read_run(tmp_path / "run", time.time()).ablation == tmp_path


def test_an_old_configuration_without_a_command_is_read(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=1)
    config = json.loads((run / "config.json").read_text())
    del config["command"]
    (run / "config.json").write_text(json.dumps(config))
    assert read_run(run, 0).command == "tokenizer"
    (run / "config.json").write_text(json.dumps(config | {"student": {"depth": 4}}))
    assert read_run(run, 0).command == "distill"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "null", '{"identity": 3, "options": {}}', '{"identity": {"steps": 1}, "options": []}', "\xff"],
)
def test_a_damaged_configuration_is_no_run(content: str, tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=1)
    (run / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(NoRun):
        read_run(run, 0)


def test_no_permission_and_other_commands_are_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=1, command="bench")
    with pytest.raises(NoRun, match="that of `bench`"):
        read_run(run, 0)

    def denied(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(NoRun, match=r"cannot be read \(Permission denied\)"):
        read_run(run, 0)
