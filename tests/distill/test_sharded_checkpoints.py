"""Checkpoints of a sharded run: written in the background, whole or absent, checked, and read by any number of processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_distill_distributed import ROOT, TINY, launch, stage_one, student, whole

from patches.protocols import as_module
from refocus_ext.engine.checkpoints import Checkpoints, load_checkpoint
from refocus_ext.engine.sharding import load_model
from refocus_ext.errors import UsageError
from refocus_ext.sampling.student import load_student

FSDP = ("--parallel", "fsdp")
PATCHED = """
import os, random, sys, threading, time
from pathlib import Path
from torch.distributed import checkpoint as dcp
from refocus_ext.distill.training import DistillTraining
{patch}
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""
# The disk answers only once the step after the save has begun: a step that waited for it would wait for ever.
STEPS_FIRST = """
began = threading.Event()
real_write, real_step = dcp.FileSystemWriter.write_data, DistillTraining.train_step
def write(self, *args):
    assert began.wait(60), "the step after the save waits for the disk"
    return real_write(self, *args)
def step(self, number, batches):
    if number == 2:  # saved after step 2 (1-based)
        began.set()
    return real_step(self, number, batches)
dcp.FileSystemWriter.write_data, DistillTraining.train_step = write, step
"""
SLOW_DISK = """
real_write = dcp.FileSystemWriter.write_data
def write(self, *args):
    time.sleep(random.random())
    return real_write(self, *args)
dcp.FileSystemWriter.write_data = write
"""
FULL_DISK = """
real_write, calls = dcp.FileSystemWriter.write_data, iter(range(100))
def write(self, *args):
    if next(calls) == 1 and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return real_write(self, *args)
dcp.FileSystemWriter.write_data = write
"""

BROKEN_DISK = """
from refocus_ext.engine import sharded_checkpoints
def publish(*_):
    raise ValueError("broken")
sharded_checkpoints.publish_folder = publish
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_one(tmp_path_factory.mktemp("stage1"))


@pytest.fixture(scope="module")
def reference(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, six steps, uninterrupted; checkpoints after steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("reference") / "run"
    launch(2, tokenizer, out, *FSDP)
    return out


def begun(reference: Path, out: Path, last: int) -> Path:
    """The reference run as if it had been killed after the checkpoint of step `last`."""
    shutil.copytree(reference, out)
    for path in (out / "checkpoints").iterdir():
        if int(path.name[5:13]) > last:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return out


def equal(run: Path, reference: Path) -> bool:
    ours, theirs = student(run), student(reference)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def patched(tmp_path: Path, patch: str) -> Path:
    script = tmp_path / "patched.py"
    script.write_text(PATCHED.format(patch=patch))
    return script


def test_each_process_writes_its_own_and_a_resumed_run_ends_in_the_same_bits(
    tokenizer: Path,
    reference: Path,
    tmp_path: Path,
) -> None:
    (newest,) = (reference / "checkpoints").glob("step-00000006-*.sharded")
    assert {path.name for path in newest.iterdir()} >= {"__0_0.distcp", "__1_0.distcp", "rest.pt", "manifest.json"}
    run = begun(reference, tmp_path / "run", last=4)
    assert "resuming after step 4" in launch(2, tokenizer, run, *FSDP)
    assert equal(run, reference)


def test_the_number_of_processes_may_change(tokenizer: Path, reference: Path, tmp_path: Path) -> None:
    """2 -> 1 -> 2: one process goes on from the shards as from a file with the same tensors; two go on from its file."""
    shards, file = (begun(reference, tmp_path / name, last=2) for name in ("shards", "file"))
    (theirs,) = (file / "checkpoints").iterdir()
    Checkpoints(file / "checkpoints").save(2, whole(theirs))
    shutil.rmtree(theirs)
    for run in (shards, file):
        assert "resuming after step 2" in launch(1, tokenizer, run)
    assert equal(shards, file) and not equal(shards, reference), "each process has random numbers of its own"
    (last,) = (shards / "checkpoints").glob("step-00000006-*.pt")
    last.unlink()
    assert "resuming after step 4" in launch(2, tokenizer, shards, *FSDP)
    assert [path.suffix for path in Checkpoints(shards / "checkpoints").paths()] == [".sharded", ".pt", ".sharded"]


def test_its_weights_can_be_read_whole(reference: Path) -> None:
    """As `ablate` does at each checkpoint of a run."""
    second, _, newest = Checkpoints(reference / "checkpoints").paths()
    var = as_module(load_student(reference).var)
    for path, same in ((second, False), (newest, True)):
        load_model(var, load_checkpoint(path), "var")
        final, loaded = student(reference), var.state_dict()
        assert all(torch.equal(final[name], loaded[name]) for name in final) == same


def test_a_flipped_bit_in_any_file_is_seen_and_passed_over(reference: Path, tmp_path: Path) -> None:
    for name in ("__1_0.distcp", ".metadata", "rest.pt", "manifest.json"):
        run = begun(reference, tmp_path / name, last=6)
        (newest,) = (run / "checkpoints").glob("step-00000006-*")
        damaged = bytearray((newest / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (newest / name).write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged: its files do not match"):
            load_checkpoint(newest)
        said: list[str] = []
        state = Checkpoints(run / "checkpoints").load_latest(said.append)
        assert state and state["step"] == 4 and "Falling back to the previous checkpoint" in said[0]
    (newest / "__0_0.distcp").unlink()
    with pytest.raises(UsageError, match="is damaged"):
        load_checkpoint(newest)


def test_the_next_step_does_not_wait_for_the_disk(tokenizer: Path, reference: Path, tmp_path: Path) -> None:
    launch(2, tokenizer, tmp_path / "run", *FSDP, "--save-every", "2", script=patched(tmp_path, STEPS_FIRST))
    assert equal(tmp_path / "run", reference), "what is saved is the state of its step"


def test_a_failed_save_stops_the_run_soon_and_leaves_the_checkpoint_before(
    tokenizer: Path, reference: Path, tmp_path: Path
) -> None:
    """Whatever the error: not at the next save, which may be hours away. A given checkpoint may be resumed from."""
    run = begun(reference, tmp_path / "run", last=2)
    (second,) = (run / "checkpoints").iterdir()
    options = ("--save-every", "4", "--steps", "400", "--extend", "--resume", str(second))
    with pytest.raises(AssertionError, match=r"step 4 could not be written .*\(broken\); the previous one is intact"):
        launch(2, tokenizer, run, *FSDP, *options, script=patched(tmp_path, BROKEN_DISK))
    assert Checkpoints(run / "checkpoints").paths() == [second] and not list((run / "checkpoints").glob(".*"))
    written = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(written) < 100, "it has stopped long before the next save"
    assert (run / "var_d3.pth").stat().st_mtime > second.stat().st_mtime, "the weights alone have been written"


def test_a_full_disk_leaves_the_checkpoint_before(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"step 4 could not be written .*No space left on device.*previous one is intact"
    ):
        launch(2, tokenizer, tmp_path / "run", *FSDP, script=patched(tmp_path, FULL_DISK))
    (left,) = Checkpoints(tmp_path / "run" / "checkpoints").paths()
    assert load_checkpoint(left)["step"] == 2


def test_kills_at_random_moments_of_a_save(tokenizer: Path, reference: Path, tmp_path: Path) -> None:
    """All processes die while a draft is there, or one of them, which ends the others; the run then goes on from an intact
    checkpoint to the same bits."""
    seed = int(os.environ.get("REFOCUS_KILL_SEED", time.time_ns() % 10_000))
    print(f"REFOCUS_KILL_SEED={seed}")
    moments, run = random.Random(seed), tmp_path / "run"
    script = patched(tmp_path, SLOW_DISK)
    for victims in ("all", "one", "all"):
        killed_while_saving(tokenizer, run, script, moments.random() * 1.2, victims)
        for path in Checkpoints(run / "checkpoints").paths():
            load_checkpoint(path)
    launch(2, tokenizer, run, *FSDP)
    assert equal(run, reference)
    assert not list((run / "checkpoints").glob(".*.part")), "drafts of killed writers are removed"


def killed_while_saving(tokenizer: Path, run: Path, script: Path, delay: float, victims: str) -> None:
    """Starts the run, waits for a draft and `delay` seconds, and kills every process of it, or its last one."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = ["--tokenizer", str(tokenizer), "--out", str(run), *FSDP]
    process = subprocess.Popen(
        [*words, *options], cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    drafts = run / "checkpoints"
    for path in drafts.glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(drafts.glob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    processes = [*map(int, children), process.pid]
    for victim in processes if victims == "all" else processes[-2:-1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.wait(90)
