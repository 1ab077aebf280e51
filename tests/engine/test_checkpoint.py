"""Checkpoints and run folders: whole or absent, verified, never in another run's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from refocus_ext.engine.checkpoints import Checkpoints, load_checkpoint
from refocus_ext.engine.run_folder import RunFolder, require_space
from refocus_ext.engine.same_run import RunIdentity
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage import atomic

ROOT = Path(__file__).resolve().parents[2]


def state(value: float) -> dict[str, Any]:
    return {"weights": torch.full((1000,), value)}


def test_the_newest_two_are_kept_and_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 10):
        checkpoints.save(step, state(step))
    assert [load_checkpoint(path)["step"] for path in checkpoints.paths()] == [2, 10]
    latest = checkpoints.load_latest()
    assert latest and latest["step"] == 10 and torch.equal(latest["weights"], torch.full((1000,), 10.0))
    assert Checkpoints(tmp_path / "none").load_latest() is None


def test_what_is_newer_than_where_a_run_goes_on_is_set_aside(tmp_path: Path) -> None:
    """Otherwise it would push out the new checkpoints, and be resumed from."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for keep in (2, 3):
        Checkpoints(tmp_path, keep).save(keep * 100, state(keep))
    assert checkpoints.set_aside(300) == []
    (moved,) = checkpoints.set_aside(200)
    assert moved.parent == tmp_path / "left" and load_checkpoint(moved)["step"] == 300
    new = checkpoints.save(250, state(9))
    latest = checkpoints.load_latest()
    assert latest and latest["step"] == 250 and checkpoints.paths() == [new]


def test_the_checkpoint_just_written_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    later = checkpoints.save(400, state(4))
    assert checkpoints.save(300, state(3)).is_file() and later.is_file()


def test_a_flipped_bit_is_seen_and_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    said: list[str] = []
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    with pytest.raises(UsageError, match="is damaged"):
        load_checkpoint(newest)
    latest = checkpoints.load_latest(said.append)
    assert latest and latest["step"] == 1
    assert len(said) == 1 and newest.name in said[0] and "Falling back" in said[0]
    (oldest,) = (path for path in checkpoints.paths() if path != newest)
    oldest.write_bytes(b"")
    assert checkpoints.load_latest(said.append) is None and "No checkpoint is left: starting from step 0" in said[-1]


def test_a_folder_in_the_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    said: list[str] = []
    first = checkpoints.save(1, state(1))
    (tmp_path / f"step-00000004-{'abc0' * 4}.pt").mkdir()
    assert checkpoints.paths() == [first] and checkpoints.newest_step() == 1
    latest = checkpoints.load_latest(said.append)
    assert latest and latest["step"] == 1
    assert (
        len(said) == 1
        and "is a folder, not a checkpoint; remove it. Falling back to the previous checkpoint." in said[0]
    )
    for step in (2, 3, 5):  # what is kept, and what is dropped, are files
        checkpoints.save(step, state(step))
    assert [load_checkpoint(path)["step"] for path in checkpoints.paths()] == [3, 5]
    for path in checkpoints.paths():
        path.unlink()
    assert checkpoints.load_latest(said.append) is None and "starting from step 0" in said[-1]


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunFailed, match=r"step 2 could not be written .*No space left on device.*intact"):
        checkpoints.save(2, state(2))
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 1
    latest = checkpoints.load_latest()
    assert latest and latest["step"] == 1


CUT_OFF_SAVE = """
import resource, signal, sys, torch
from pathlib import Path
from refocus_ext.engine.checkpoints import Checkpoints
from refocus_ext.errors import RunFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpoints(Path(sys.argv[1])).save(2, {"weights": torch.randn(1_000_000)})
except RunFailed as error:
    assert "the previous one is intact" in str(error), error
    raise SystemExit(17)
"""


def test_a_write_that_the_system_cuts_off_leaves_the_last_one(tmp_path: Path) -> None:
    """A real short write in the middle of torch.save, as on a full disk (here by a limit on the file's size)."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    cut = subprocess.run([sys.executable, "-c", CUT_OFF_SAVE, str(tmp_path)], cwd=ROOT)
    assert cut.returncode == 17
    assert len(os.listdir(tmp_path)) == 1, "the torn file is removed"
    latest = checkpoints.load_latest()
    assert latest and latest["step"] == 1


KILLED_SAVE = """
import os, signal, sys, torch
from pathlib import Path
from refocus_ext.engine.checkpoints import Checkpoints
real = torch.save
def killed(value, file):
    real(value, file)
    file.truncate(file.tell() // 2)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
Checkpoints(Path(sys.argv[1])).save(2, {"weights": torch.zeros(100000)})
"""


def test_sigkill_in_the_middle_of_a_save_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    killed = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    latest = checkpoints.load_latest()
    assert latest and latest["step"] == 1
    assert len(os.listdir(tmp_path)) == 2, "the torn file of the killed writer"
    checkpoints.save(2, state(2))
    assert sorted(os.listdir(tmp_path)) == [path.name for path in checkpoints.paths()]


def test_foreign_files_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "weights.pt")


def test_equal_tensors_make_equal_bytes_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": torch.arange(3), "b": {"c": 1}}
    atomic.save_tensors(tmp_path / "a.pth", value)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as another process would
    atomic.save_tensors(tmp_path / "b.pth", value)
    assert atomic.sha256(tmp_path / "a.pth") == atomic.sha256(tmp_path / "b.pth")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    atomic.save_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        atomic.save_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


# ------------------------------------------------------------------------------------------------ run folders


def test_the_same_run_is_reopened_another_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", RunIdentity({"steps": 5, "lr": 0.1}))
    RunFolder(tmp_path / "run", RunIdentity({"steps": 5, "lr": 0.1}))
    with pytest.raises(
        UsageError, match=r"holds a run with lr = 0\.1, this one has 0\.2 and steps = 5, this one has 6"
    ):
        RunFolder(tmp_path / "run", RunIdentity({"steps": 6, "lr": 0.2}))


def test_fresh_moves_the_old_run_aside(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", RunIdentity({"steps": 5}))
    (tmp_path / "run" / "vae.pth").write_text("precious")
    run = RunFolder(tmp_path / "run", RunIdentity({"steps": 6}), fresh=True)
    assert run.moved_to == tmp_path / "run.1" and (tmp_path / "run.1" / "vae.pth").read_text() == "precious"


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "file", RunIdentity({}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UsageError, match="holds files but no run"):
        RunFolder(tmp_path / "photos", RunIdentity({}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="not a run's configuration"):
        RunFolder(tmp_path / "odd", RunIdentity({}))


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # root may write anywhere, so a read-only folder proves nothing here
    with pytest.raises(UsageError, match=r"cannot write to --out .*Permission denied"):
        RunFolder(tmp_path / "run", RunIdentity({}))


def test_no_space_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GiB free, but checkpoints and weights of this run need"):
        require_space(tmp_path / "run", 1 << 60)
    assert not (tmp_path / "run").exists()


def test_metrics_past_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", RunIdentity({}))
    run.begin_metrics(0)
    for step in (1, 2, 3):
        run.log(step, {"loss": step})
    run.close()
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')  # the torn last line of a killed process
    again = RunFolder(tmp_path / "run", RunIdentity({}))
    again.begin_metrics(2)
    again.log(3, {"loss": 30.0})
    again.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]
