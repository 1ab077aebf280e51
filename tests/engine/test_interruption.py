"""An interruption ends every process with the same code, whichever of them was signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))

RANK_1_IS_SIGNALLED = """
import os, signal, sys
from refocus_ext.engine.distributed import join_world
from refocus_ext.engine.interruption import Interruption
with join_world("cpu") as world, Interruption() as interruption:
    before = interruption.agreed(world)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    line = f"rank {world.rank}: {before} then {interruption.agreed(world)}, {world.gather(world.rank)}\\n"
    os.write(1, line.encode())  # in one call: print writes the line's end on its own, and the ranks share a pipe
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
        (signal.SIGHUP, 129),
    ],
)
def test_one_process_ends_with_its_signals_code(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with Interruption("saving first") as interruption:
        assert interruption.agreed(ALONE) == 0
        os.kill(os.getpid(), number)
        assert interruption.agreed(ALONE) == code
    assert signal.getsignal(number) is before
    assert "interrupted: saving first" in capsys.readouterr().err


def test_the_first_signal_counts_and_its_echo_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers signal all processes of a job, and the launcher passes it on: the same signal arrives twice."""
    with Interruption() as interruption:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interruption.agreed(ALONE) == 138
        monkeypatch.setattr("refocus_ext.engine.interruption.ECHO", 0.0)
        os.kill(os.getpid(), signal.SIGUSR1)  # a warning stays one
        assert interruption.agreed(ALONE) == 138
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.agreed(ALONE) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_was_not_signalled_ends_with_the_same_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANK_1_IS_SIGNALLED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0: 0 then 143, [0, 1]", "rank 1: 0 then 143, [0, 1]"]
