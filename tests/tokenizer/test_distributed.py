"""Several processes (gloo on the CPU): the same run, agreement on bad steps, other numbers of processes on resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "tokenizer --preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 "
    "--latent-channels 8 --batch-size 4 --warm-autoencoder 2 --picture-every 3 --save-every 2 --revive 0 --workers 0 "
    "--noise-min 0 --noise-max 0"
).split()

POISON_RANK_1 = """
import os, sys
from refocus_ext.tokenizer.losses import objective
real, calls = objective.StructureObjective.forward, iter(range(1000))
def forward(self, *args, **kwargs):
    out = real(self, *args, **kwargs)
    if next(calls) == 3 and os.environ["RANK"] == "1":
        out.loss = out.loss * float("nan")
    return out
objective.StructureObjective.forward = forward
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""


COUNTS_CODES = """
import os
from types import SimpleNamespace
import torch
from refocus_ext.engine.distributed import join_world
from refocus_ext.tokenizer.codebooks import Codebooks
with join_world("cpu") as world:
    books = Codebooks.__new__(Codebooks)
    books.world, books.alias_revival = world, None
    books.revival = SimpleNamespace(hits_V=torch.tensor([1, 10 * world.rank]))
    saved = books.state_dict()["revival"]["hits_V"].tolist()
    books.load_state_dict({"revival": {"hits_V": torch.tensor([2, 10])}})
    os.write(1, f"rank {world.rank}: {saved} {books.revival.hits_V.tolist()}\\n".encode())
"""


def command(processes: int, data: Path, out: Path, *options: str, script: Path | None = None) -> list[str]:
    what = [str(script)] if script else ["-m", "refocus_ext"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launch, *what, *TINY, "--data", str(data), "--out", str(out), *options]


def launch(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*args, **kwargs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )


def train_losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def test_two_processes_are_one_run_and_the_number_may_change(image_tree: Path, tmp_path: Path) -> None:
    """2 -> 1 -> 2 processes give the losses of one process throughout (up to rounding): no sample lost or repeated."""
    one = launch(1, image_tree, tmp_path / "one", "--steps", "6")
    assert one.returncode == 0, one.stderr
    whole = launch(2, image_tree, tmp_path / "two", "--steps", "6")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("upstream: ") == 1, "only rank 0 talks"
    shutil.copytree(tmp_path / "two", tmp_path / "parts")
    for processes, begun in ((1, 4), (2, 5)):
        for path in (tmp_path / "parts" / "checkpoints").glob("step-*"):
            if int(path.name.split("-")[1]) > begun:  # as if it had been killed after that step
                path.unlink()
        part = launch(processes, image_tree, tmp_path / "parts", "--steps", "6", "--save-every", "1")
        assert part.returncode == 0 and f"resuming after step {begun}" in part.stdout, part.stderr
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), rel=2e-3)
    assert train_losses(tmp_path / "parts") == pytest.approx(train_losses(tmp_path / "one"), rel=2e-3)


def test_nan_on_one_rank_and_a_broken_image(image_tree: Path, tmp_path: Path) -> None:
    """A NaN on rank 1 alone makes neither rank update; an image that one process cannot read counts once."""
    broken = image_tree / "train" / "cat" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 3 // 4])
    script = tmp_path / "poisoned.py"
    script.write_text(POISON_RANK_1)
    poisoned = launch(2, image_tree, tmp_path / "run", "--steps", "4", "--save-every", "1", script=script)
    assert poisoned.returncode == 0, poisoned.stderr
    assert "step 4 skipped: its loss or gradient is not finite" in poisoned.stdout
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["train/broken_images"] for record in records if "train/broken_images" in record][-1] == 1
    states = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))]
    weights = [key for key in states[0]["vae"] if "ema_vocab_hit" not in key]
    assert [state["step"] for state in states] == [3, 4]
    assert all(torch.equal(states[0]["vae"][key], states[1]["vae"][key]) for key in weights)


def test_a_checkpoint_has_the_code_hits_of_all_processes_and_they_count_once(image_tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "counts.py"
    script.write_text(COUNTS_CODES)
    done = launch(2, image_tree, tmp_path / "run", script=script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0: [2, 10] [2, 10]", "rank 1: [2, 10] [0, 0]"]


def test_sigterm_saves_and_the_same_command_continues(image_tree: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = command(2, image_tree, tmp_path / "run", "--steps", "500", "--save-every", "500", "--picture-every", "500")
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    saved = list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert process.returncode != 0 and len(saved) == 1, output
    state = torch.load(saved[0], weights_only=True)
    assert 3 <= state["step"] < 500
    assert len(metrics.read_text().splitlines()) == state["step"], "saved at the boundary of the step it had reached"


def test_a_group_that_does_not_form_is_fatal(image_tree: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "REFOCUS_DIST_TIMEOUT": "2",
    }  # fmt: skip
    words = [sys.executable, "-m", "refocus_ext", *TINY, "--data", str(image_tree), "--out", str(tmp_path / "run")]
    alone = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert alone.returncode == 1 and "the process group did not start on rank 1" in alone.stderr
    assert not (tmp_path / "run").exists()
