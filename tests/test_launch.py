"""The launcher: torch's variables, signals passed on, one exit code; and the script of docs/cluster.md on a fake SLURM."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from refocus_ext import launch

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "tokenizer --preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 "
    "--latent-channels 8 --batch-size 4 --warm-autoencoder 2 --picture-every 500 --save-every 500 --revive 0 --workers 0 "
    "--device cpu"
).split()

# Run under -S or bare: no torch, so that these tests take no time.
SAYS_WHO_IT_IS = """
import os, sys
names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
open(os.path.join(sys.argv[1], os.environ["RANK"]), "w").write(" ".join(os.environ[name] for name in names))
"""
LEAVES_ON_A_SIGNAL = """
import os, signal, sys, time
def leave(number, frame):
    os._exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, leave)
open(os.path.join(sys.argv[1], os.environ["RANK"]), "w").close()
time.sleep(60)
"""


def started(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "refocus_ext.launch", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


@pytest.fixture
def handlers_back() -> Iterator[None]:
    """The signal handlers of this process, after a launch in it."""
    before = {number: signal.getsignal(number) for number in launch.PASSED_ON}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_processes_know_who_they_are(tmp_path: Path) -> None:
    node = "--nnodes 3 --node-rank 2 --master-addr first --master-port 29".split()
    done = started("--processes", "2", *node, "--", "-c", SAYS_WHO_IT_IS, tmp_path)
    assert done.wait(30) == 0
    assert (tmp_path / "4").read_text() == "4 0 6 2 first 29" and (tmp_path / "5").read_text() == "5 1 6 2 first 29"


@pytest.mark.parametrize("number", launch.PASSED_ON)
def test_a_signal_reaches_every_process_and_its_code_comes_back(number: signal.Signals, tmp_path: Path) -> None:
    process = started("--processes", "2", "--", "-c", LEAVES_ON_A_SIGNAL, tmp_path)
    until(lambda: len(os.listdir(tmp_path)) == 2)
    time.sleep(0.2)  # the file is there, and the process asleep
    process.send_signal(number)
    assert process.wait(30) == 128 + number


def test_a_killed_process_is_told_by_the_launcher(tmp_path: Path) -> None:
    """And the exit code says how it ended."""
    dies = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(1)"
    process = started("--processes", "2", "--", "-c", dies)
    assert process.wait(30) == 128 + signal.SIGKILL and process.stderr
    assert process.stderr.read() == "refocus: process 1 of this machine was killed (too little memory?)\n"


@pytest.mark.usefixtures("handlers_back")
def test_a_killed_process_comes_before_those_that_failed_for_want_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both end between two looks at them; the one of rank 0 ends second and is looked at first."""
    dies = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    open(sys.argv[1], "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
sys.exit(1)
"""
    monkeypatch.setattr(launch, "TICK", 3.0)
    assert launch.launch(["-c", dies, str(tmp_path / "dies")], 2, 1, 0, "127.0.0.1", 1) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "refocus: process 1 of this machine was killed (too little memory?)\n"


def test_the_processes_left_behind_say_what_happened(tmp_path: Path) -> None:
    """A sentence, and no traceback."""
    words = [*TINY, "--steps", "100000", "--out", str(tmp_path / "run")]
    process = started("--processes", "2", "--", "-m", "refocus_ext", *words)
    until(lambda: (tmp_path / "run" / "running.json").is_file())
    (victim,) = (pid for pid in _children(process.pid) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL and process.stderr
    said = process.stderr.read()
    assert "process 1 of this machine was killed" in said and "Traceback" not in said
    assert "refocus: another process of this run ended or could not be reached (rank 0: " in said
    assert "rerun the same command to resume" in said


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.usefixtures("handlers_back")
def test_one_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    monkeypatch.setattr(launch, "GRACE", 0.3)
    fails = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(60)"
    began = time.monotonic()
    assert launch.launch(["-c", fails], 2, 1, 0, "127.0.0.1", 1) == 2
    assert time.monotonic() - began < 20


# ------------------------------------------------------------------------------------------------ docs/cluster.md

SCONTROL = """#!/usr/bin/env bash
echo "$*" >> "$FAKE/scontrol.log"
if [ "$1 $2" = "show hostnames" ]; then printf '127.0.0.1\\nlocalhost\\n'; fi
"""
# As srun does: a task per node with SLURM_NODEID, signals passed on, the highest exit code.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--wait=")]
tasks = []
for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
    tasks.append(subprocess.Popen(words, env=os.environ | {"SLURM_NODEID": str(node)}, start_new_session=True))
def pass_on(number, frame):
    for task in tasks:
        task.send_signal(number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, pass_on)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`slurm(words...)` runs the page's script as a job on two nodes with one process each."""
    (script,) = re.findall(
        r"```bash\n(#!/usr/bin/env bash\n#SBATCH.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S
    )
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def job(*words: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAKE": str(tmp_path), "OMP_NUM_THREADS": "1",
            "REFOCUS_PYTHON": sys.executable, "REFOCUS_UPSTREAM": "stand-in", "MASTER_PORT": str(port),
            "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1",
        }  # fmt: skip
        command = ["bash", str(tmp_path / "job.sh"), *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return job


def test_the_batch_script_saves_requeues_and_resumes(
    slurm: Callable[..., subprocess.Popen[str]], image_tree: Path, tmp_path: Path
) -> None:
    words = [*TINY, "--data", str(image_tree), "--out", str(tmp_path / "run")]
    metrics, log = tmp_path / "run" / "metrics.jsonl", tmp_path / "scontrol.log"
    first = slurm(*words, "--steps", "100000")
    until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 2)
    first.send_signal(signal.SIGUSR1)
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 138 and "rerun the same command to resume" in output, output
    assert log.read_text().splitlines() == ["show hostnames node[1-2]", "requeue 7"]
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*.pt")
    step = torch.load(saved, weights_only=True)["step"]
    again = slurm(*words, "--steps", str(step + 2), "--extend")  # refused: fewer steps than the run has
    assert again.wait(120) == 2 and "requeue" not in log.read_text().splitlines()[-1]
    second = slurm(*words, "--steps", "100000")
    until(lambda: len(metrics.read_text().splitlines()) > step)
    second.send_signal(signal.SIGTERM)
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 143 and f"resuming after step {step}" in output, output
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["show", "requeue", "show", "show"]


def test_the_plan_of_a_job_is_made_on_one_node(image_tree: Path, tmp_path: Path) -> None:
    """For four nodes of two processes, none of which is there."""
    nodes = {"NNODES": "4", "NODE_RANK": "0", "MASTER_ADDR": "nowhere", "NPROC": "2", "REFOCUS_PYTHON": sys.executable}
    words = [
        "bash",
        "run.sh",
        *TINY,
        "--data",
        str(image_tree),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "3",
        "--dry-run",
    ]

    def plan(batch: str) -> subprocess.CompletedProcess[str]:
        command = [*words, "--batch-size", batch]
        return subprocess.run(command, cwd=ROOT, env=os.environ | nodes, capture_output=True, text=True, timeout=120)

    good = plan("8")
    assert good.returncode == 0 and "on each process for 1 image at once" in good.stdout, good.stderr
    bad = plan("4")
    assert bad.returncode == 2 and "does not divide over 8 processes" in bad.stderr and not (tmp_path / "run").exists()


# Destroying a group of NCCL waits for the other processes; here it takes for ever.
FAILS_ALONE = """
import runpy, time
from torch import distributed
from refocus_ext import commands
from refocus_ext.engine.distributed import join_world
distributed.destroy_process_group = lambda: time.sleep(600)
def main(argv):
    with join_world("cpu") as world:
        if world.rank == 1:
            raise ValueError("the reason")
        world.barrier()
commands.main = main
runpy.run_module("refocus_ext", run_name="__main__")
"""


def test_a_process_that_fails_says_why_and_waits_for_no_other() -> None:
    process = started("--processes", "2", "--", "-c", FAILS_ALONE)
    assert process.wait(60) == 1 and process.stderr
    assert "ValueError: the reason" in process.stderr.read()
