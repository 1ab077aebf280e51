"""Stage 2 on several processes (gloo on the CPU): copies, shards, and checkpoints that pass from one to the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from refocus_ext.commands import main

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = (
    "tokenizer --preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 "
    "--latent-channels 8 --batch-size 4 --steps 4 --warm-autoencoder 2 --picture-every 4 --save-every 4"
).split()
TINY = (
    "distill --preset demo --depth 3 --batch-size 4 --steps 6 --picture-every 3 --save-every 2 --keep 9 --samples 2 --crops 2 "
    "--lr 1e-3"
).split()
POISON_RANK_1 = """
import os, sys
from refocus_ext.distill import objective
real, calls = objective.DistillObjective.forward, iter(range(1000))
def forward(self, *args):
    loss, terms = real(self, *args)
    return (loss * float("nan") if next(calls) == 3 and os.environ["RANK"] == "1" else loss), terms
objective.DistillObjective.forward = forward
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""

SAME_ON_ALL = """
import sys
import torch
from torch import distributed as dist
from refocus_ext.distill.teacher.ema import EmaTeacher
real = EmaTeacher.follow
def follow(self, var, step, skipped):
    real(self, var, step, skipped)
    own = torch.cat([p.detach().flatten() for p in self.parameters()])
    both = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(both, own)
    assert torch.equal(*both)
EmaTeacher.follow = follow
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_one(tmp_path_factory.mktemp("stage1"))


def stage_one(root: Path) -> Path:
    """A finished stage-1 run, made in the folder `root`."""
    for number, name in enumerate(("cat", "dog")):
        write_images(root / "data" / "train" / name, 6, seed=number)
        write_images(root / "data" / "val" / name, 3, seed=10 + number)
    assert main([*TOKENIZER, "--data", str(root / "data"), "--out", str(root / "run")]) == 0
    return root / "run"


def launch(processes: int, tokenizer: Path, out: Path, *options: str, script: Path | None = None) -> str:
    """Runs `distill`; returns what it printed."""
    what = [str(script)] if script else ["-m", "refocus_ext"]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *what]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, *TINY, "--tokenizer", str(tokenizer), "--out", str(out), *options],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def student(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "var_d3.pth", weights_only=True)


def whole(checkpoint: Path) -> dict[str, Any]:
    """The state in a sharded checkpoint, with whole tensors."""
    file = checkpoint.with_name("whole.pt")
    dcp_to_torch_save(checkpoint, file)
    parts = torch.load(file, weights_only=True)
    file.unlink()
    rest = torch.load(checkpoint / "rest.pt", weights_only=True)
    return rest | {"var": parts["model"], "var_optimizer": parts["optimizer"]}


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def test_shards_are_copies_and_checkpoints_pass_between_them(tokenizer: Path, tmp_path: Path) -> None:
    """FSDP2 takes DDP's steps; DDP goes on from its sharded checkpoint, and it from DDP's file."""
    assert launch(2, tokenizer, tmp_path / "ddp").count("upstream: ") == 1, "only rank 0 talks"
    launch(2, tokenizer, tmp_path / "fsdp", "--parallel", "fsdp")
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-4)
    copies, shards = student(tmp_path / "ddp"), student(tmp_path / "fsdp")
    assert copies.keys() == shards.keys()
    assert all(torch.allclose(copies[key], shards[key], atol=1e-4) for key in copies)
    for path in (tmp_path / "fsdp" / "checkpoints").glob("step-00000006-*"):
        shutil.rmtree(path)  # as if it had been killed after step 4
    assert "resuming after step 4" in launch(2, tokenizer, tmp_path / "fsdp")
    assert all(torch.allclose(copies[key], value, atol=1e-4) for key, value in student(tmp_path / "fsdp").items())
    for path in (tmp_path / "ddp" / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    assert "resuming after step 4" in launch(2, tokenizer, tmp_path / "ddp", "--parallel", "fsdp")
    assert all(torch.allclose(copies[key], value, atol=1e-4) for key, value in student(tmp_path / "ddp").items())
    validated = [json.loads(line) for line in (tmp_path / "ddp" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/gap_other" in record for record in validated)


def test_the_running_mean_of_aliases_is_over_all_processes(tokenizer: Path, tmp_path: Path) -> None:
    means = []
    for processes in (1, 2):
        launch(processes, tokenizer, tmp_path / f"{processes}", "--steps", "1")
        teacher = torch.load(tmp_path / f"{processes}" / "teacher.pth", weights_only=True)
        means.append(teacher["embed.mean_TC"])
    assert means[0].any() and torch.allclose(means[0], means[1], atol=1e-5)


def test_nan_on_one_rank_updates_none(tokenizer: Path, tmp_path: Path) -> None:
    script = tmp_path / "poisoned.py"
    script.write_text(POISON_RANK_1)
    out = launch(
        2, tokenizer, tmp_path / "run", "--steps", "4", "--save-every", "1", "--parallel", "fsdp", script=script
    )
    assert "step 4 skipped: its loss or gradient is not finite" in out
    states = [whole(path) for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))]
    assert [state["step"] for state in states] == [1, 2, 3, 4]
    for part in ("var", "teacher"):
        assert all(torch.equal(states[2][part][key], states[3][part][key]) for key in states[2][part])
    assert not all(torch.equal(states[1]["var"][key], states[2]["var"][key]) for key in states[1]["var"])


def test_shards_gathered_in_bf16_train_as_copies_do(tokenizer: Path, tmp_path: Path) -> None:
    """The blocks' weights are gathered in bf16, which autocast makes of them anyway; the files hold fp32."""
    for name, options in (("ddp", ()), ("fsdp", ("--parallel", "fsdp"))):
        launch(2, tokenizer, tmp_path / name, "--precision", "bf16", *options)
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=5e-3)
    assert all(value.dtype != torch.bfloat16 for value in student(tmp_path / "fsdp").values())


@pytest.mark.slow
def test_the_average_is_the_same_on_every_process(tokenizer: Path, tmp_path: Path) -> None:
    """And a resumed run ends in its bits."""
    script = tmp_path / "same.py"
    script.write_text(SAME_ON_ALL)
    launch(2, tokenizer, tmp_path / "run", "--teacher", "ema", script=script)
    teacher = torch.load(tmp_path / "run" / "teacher.pth", weights_only=True)
    for path in (tmp_path / "run" / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    assert "resuming after step 4" in launch(2, tokenizer, tmp_path / "run", "--teacher", "ema")
    again = torch.load(tmp_path / "run" / "teacher.pth", weights_only=True)
    assert all(torch.equal(teacher[key], value) for key, value in again.items())


@pytest.mark.slow
def test_teachers_of_their_own_weights_train_beside_shards(tokenizer: Path, tmp_path: Path) -> None:
    """Copies, and a frozen teacher that an unsharded run of one process has trained."""
    launch(1, tokenizer, tmp_path / "source", "--teacher", "separate")
    for name, words in (("copies", ()), ("frozen", ("--teacher-from", str(tmp_path / "source")))):
        for parallel in ("ddp", "fsdp"):
            options = ("--teacher", name, *words, "--parallel", parallel)
            launch(2, tokenizer, tmp_path / f"{name}-{parallel}", *options)
        copies, shards = (student(tmp_path / f"{name}-{parallel}") for parallel in ("ddp", "fsdp"))
        assert losses(tmp_path / f"{name}-fsdp") == pytest.approx(losses(tmp_path / f"{name}-ddp"), rel=1e-4)
        assert all(torch.allclose(copies[key], shards[key], atol=1e-4) for key in copies)
