"""A running run is told from a dead one, also after kill -9, a reused pid, and from another machine."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from refocus_ext.engine.life_sign import FILE, PATIENCE, LifeSign, look, other_writer
from refocus_ext.engine.run_folder import check_run_folder
from refocus_ext.engine.same_run import RunIdentity
from refocus_ext.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LIVING = """
import sys, time
from pathlib import Path
from refocus_ext.engine.life_sign import LifeSign
sign = LifeSign(Path(sys.argv[1]))
print("there", flush=True)
time.sleep(float(sys.argv[2]))
"""


def elsewhere(run: Path, **changes: Any) -> None:
    """The sign as a process of another machine, or another process, would have written it."""
    found = json.loads((run / FILE).read_text())
    (run / FILE).write_text(json.dumps(found | changes))


def living(run: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LIVING, str(run), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def test_a_sign_is_there_while_its_run_is_and_then_gone(tmp_path: Path) -> None:
    sign = LifeSign(tmp_path)
    seen = look(tmp_path)
    assert seen is not None and seen.here and seen.life(time.time() + 1e6) == "alive" and seen.pid == os.getpid()
    sign.end()
    assert look(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_killed_process_is_dead_at_once(tmp_path: Path) -> None:
    process = living(tmp_path, 60)
    seen = look(tmp_path)
    assert seen is not None and seen.pid == process.pid and seen.life(time.time()) == "alive"
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = look(tmp_path)
    assert seen is not None and seen.life(time.time()) == "dead", "its sign remains, its process does not"


def test_a_process_that_exits_by_itself_takes_its_sign_along(tmp_path: Path) -> None:
    process = living(tmp_path, 0)
    assert process.wait() == 0 and look(tmp_path) is None


def test_another_process_with_the_same_pid_is_not_the_run(tmp_path: Path) -> None:
    sign = LifeSign(tmp_path)
    elsewhere(tmp_path, started="1")
    seen = look(tmp_path)
    assert seen is not None and seen.life(time.time()) == "dead"
    sign.end()


def test_from_another_machine_only_time_tells(tmp_path: Path) -> None:
    sign = LifeSign(tmp_path)
    elsewhere(tmp_path, place="another machine", host="gpu7")
    seen = look(tmp_path)
    assert seen is not None and not seen.here and seen.host == "gpu7"
    assert [seen.life(seen.began + after) for after in (-60, 0, PATIENCE - 1, PATIENCE + 1)] == [
        "alive", "alive", "alive", "silent",
    ]  # fmt: skip
    assert seen.silent_for(seen.began + 90) == pytest.approx(90)
    elsewhere(tmp_path, place="another machine", beats=[[1, seen.began], [2, seen.began + 200]])
    slow = look(tmp_path)
    assert slow is not None and slow.seconds_per_step() == pytest.approx(200)
    assert slow.life(seen.began + 200 + 1999) == "alive", "a step of this run takes minutes"
    assert slow.life(seen.began + 200 + 2001) == "silent"
    sign.end()


def test_beats_are_rare_few_and_give_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: now)
    sign = LifeSign(tmp_path, every=10)
    for step in range(1, 1001):
        now += 0.5
        sign.beat(step)
    seen = look(tmp_path)
    assert seen is not None and len(seen.beats) == 12 and seen.seconds_per_step() == pytest.approx(0.5)
    assert [step for step, _ in seen.beats[-2:]] == [980, 1000]
    sign.end()


def test_an_older_run_does_not_take_the_sign_of_a_newer_one(tmp_path: Path) -> None:
    older = LifeSign(tmp_path)
    newer = LifeSign(tmp_path)
    del older
    gc.collect()
    seen = look(tmp_path)
    assert seen is not None and seen.life(time.time()) == "alive"
    newer.end()
    assert look(tmp_path) is None


def test_a_loader_process_does_not_take_the_sign(tmp_path: Path) -> None:
    sign = LifeSign(tmp_path)
    child = os.fork()
    if not child:
        sign.end()
        os._exit(0)
    os.waitpid(child, 0)
    assert look(tmp_path) is not None
    sign.end()


def test_a_full_disk_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sign = LifeSign(tmp_path, every=0)
    monkeypatch.setattr(os, "replace", full)
    for step in range(5):
        sign.beat(step)
    assert capsys.readouterr().err.count("No space left on device") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"place": 3, "pid": "x"}', '{"beats": null}', "\0\0"])
def test_a_damaged_sign_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert look(tmp_path) is None


def test_a_folder_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    """While it lives; what a killed one left behind is no hindrance."""
    identity = RunIdentity({"steps": 3})
    process = living(tmp_path, 60)
    with pytest.raises(
        UsageError, match=rf"being trained by the process {process.pid}; wait for it .* choose another --out"
    ):
        check_run_folder(tmp_path, identity)
    process.kill()
    process.wait()
    (tmp_path / FILE).rename(tmp_path.parent / FILE)
    check_run_folder(tmp_path, identity)


def test_a_process_that_takes_no_step_gives_signs_too(tmp_path: Path) -> None:
    """While it makes a token cache or validates, for longer than others wait; and none after its end."""
    sign = LifeSign(tmp_path, at_least=0.05)
    first = look(tmp_path)
    assert first and first.at > 0
    deadline = time.monotonic() + 10
    while (seen := look(tmp_path)) is None or seen.at == first.at:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert seen.last == seen.at and not seen.beats
    sign.end()
    time.sleep(0.2)
    assert look(tmp_path) is None


def test_another_machines_process_lives_if_it_gives_another_sign(tmp_path: Path) -> None:
    def write(at: float, token: str = "theirs") -> None:
        facts = {"host": "gpu7", "place": "elsewhere", "pid": 12, "started": "", "began": at, "token": token}
        (tmp_path / FILE).write_text(json.dumps({**facts, "at": at, "beats": []}))

    assert other_writer(tmp_path, patience=0.2) is None, "there is none"
    write(time.time() - 10 * PATIENCE)
    assert other_writer(tmp_path, patience=60) is None, "it was silent for long, and is not waited for"
    write(time.time())
    assert other_writer(tmp_path, patience=0.2) is None, "it has died since"
    threading.Timer(0.1, write, [time.time() + 1]).start()
    found = other_writer(tmp_path, patience=5)
    assert found and (found.host, found.pid) == ("gpu7", 12)
