"""An interruption ends every process with the same code, whichever of them was signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
    print(f"rank {world.rank}: {before} then {interruption.agreed(world)}, {world.gather(world.rank)}", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_process_ends_with_its_signals_code(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with Interruption("saving first") as interruption:
        assert interruption.agreed(ALONE) == 0
        os.kill(os.getpid(), number)
        assert interruption.agreed(ALONE) == code
    assert signal.getsignal(number) is before
    assert "interrupted: saving first" in capsys.readouterr().err


def test_a_process_that_was_not_signalled_ends_with_the_same_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANK_1_IS_SIGNALLED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0: 0 then 143, [0, 1]", "rank 1: 0 then 143, [0, 1]"]
