"""--dry-run before there is anything to run on: for GPUs elsewhere, for stage 2 before stage 1, of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import run_main

from refocus_ext.engine.distributed import World
from refocus_ext.engine.dry_run import print_whole_run
from refocus_ext.engine.memory.plan import free_memory
from refocus_ext.options.presets import preset

PAPER = (
    "tokenizer",
    "--preset",
    "paper",
    "--lpips",
    "0",
    "--dry-run",
    "--small-images",
    "upsample",
    "--batch-size",
    "4",
)


def test_a_gpu_elsewhere(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan is counted as on CUDA and refused where it does not fit; no CUDA is needed."""
    monkeypatch.chdir(tmp_path)
    words = [*PAPER, "--data", str(image_tree)]
    assert run_main(*words, "--gpu-memory", "80") == 0
    out = capsys.readouterr().out
    assert "in bf16 on cuda" in out and "80.0 GiB are free" in out and "(counted for this CPU" not in out
    assert "whole run: 100,000 steps, " in out and " at 100 TFLOP/s" in out and "disk: " in out
    assert run_main(*words, "--gpu-memory", "12") == 2
    assert "has 12.0 GiB free; give --accumulate" in capsys.readouterr().err
    assert run_main(*words, "--gpu-memory", "16", "--accumulate", "auto", "--grad-checkpoint") == 0
    assert run_main(*words, "--device", "cpu") == 0
    out = capsys.readouterr().out.partition("(counted for this CPU")[2]
    assert "whole run: " in out and "TFLOP/s" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert run_main(*(word for word in words if word != "--dry-run"), "--gpu-memory", "80") == 2
    assert "--gpu-memory 80 is for plans only; add --dry-run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_says_how_to_plan_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokenizer", "--device", "cuda", "--dry-run") == 2
    assert "plan for a GPU elsewhere with --dry-run --gpu-memory GIB" in capsys.readouterr().err


def test_stage_2_is_planned_before_stage_1(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFOCUS_PROCESSES", "4")
    words = (
        "distill",
        "--dry-run",
        "--data",
        str(image_tree),
        "--preset",
        "demo",
        "--depth",
        "2",
        "--gpu-memory",
        "24",
    )
    assert run_main(*words) == 0
    out = capsys.readouterr().out
    assert "tokenizer: runs/tokenizer: not there yet; planned as preset demo trains it" in out
    assert f"{preset('demo', 'tokenizer')['codebook_size']} codes" in out and "alias gates in the last 2 blocks" in out
    assert "processes: 4, with 2 images of a step each" in out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert run_main(*(word for word in words if word not in ("--dry-run", "--gpu-memory", "24"))) == 2
    assert "runs/tokenizer does not exist" in capsys.readouterr().err


def test_the_whole_run_is_the_steps_times_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from types import SimpleNamespace

    options = SimpleNamespace(steps=1000, batch_size=256, out=str(tmp_path / "run"), resume="auto")
    print_whole_run(options, World(0, 8, torch.device("cuda")), flops=4.5e12, disk=2**31)
    assert capsys.readouterr().out.splitlines() == [
        "processes: 8, with 32 images of a step each",
        "whole run: 1,000 steps, 1.15 EFLOP; at 100 TFLOP/s on each of 8 GPUs 24 minutes",
        f"disk: 2.0 GiB in {tmp_path / 'run'}",
    ]


def test_a_plan_says_where_a_run_goes_on(image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 16 --latent-channels 8 --batch-size 2"
    words = ["tokenizer", "--preset", "demo", "--data", str(image_tree), *sizes.split(), "--steps", "2"]
    words += ["--warm-autoencoder", "1", "--out", str(tmp_path / "run")]
    assert run_main(*words) == 0 and run_main(*words, "--extend", "--steps", "5", "--dry-run") == 0
    assert f"continues the run in {tmp_path / 'run'} after step 2 of 5" in capsys.readouterr().out


def test_processes_of_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, 1, torch.device("cpu"))
    alone = free_memory(world)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    together = free_memory(world)
    assert alone and together and 0.2 < together / alone < 0.3
    assert free_memory(world, gpu_memory=24) == 24 * 2**30
