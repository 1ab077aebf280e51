"""What a stage-2 step is said to keep, against what a real one keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_images
from saved_tensors import saved_tensors

from patches import Upstream, load_upstream
from refocus_ext.commands import main
from refocus_ext.distill import budget
from refocus_ext.distill.cost import ActivationCost, _passes, activation_cost
from refocus_ext.distill.networks import NetworkPlan, _patched
from refocus_ext.distill.objective import DistillObjective
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import Sizes
from refocus_ext.distill.recipe import DistillWeights
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import TeacherOverhead, TeacherSettings
from refocus_ext.distill.teacher.kinds import teacher_class
from refocus_ext.engine.devices import DeviceKind

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PATCH_NUMS, STATES, CODES, DEPTH, IMAGES = (1, 2, 3, 4), (0, 0, 1, 2), 64, 4, 2


def geometry_of(depth: int) -> TeacherGeometry:
    return TeacherGeometry(64 * depth, 8, (2, 4), PATCH_NUMS, STATES, blocks=2)


def kept_by_a_real_pass(upstream: Upstream, plan: NetworkPlan, dtype: torch.dtype) -> int:
    """Bytes kept by the passes of student and teacher on the CPU, without weights and buffers."""
    geometry, doubled = geometry_of(plan.depth), 2 if plan.teacher != "off" else 0
    vae = upstream.build_vae(vocab_size=CODES, z_channels=8, ch=32, patch_nums=PATCH_NUMS)

    def build(recorded: int) -> Any:
        return _patched(upstream.build_var(vae, depth=plan.depth, num_classes=10), plan, recorded, doubled)

    kind = teacher_class(plan.teacher)
    var, teacher = build(doubled), kind.build(geometry, lambda: build(0), 0) if kind else None
    objective = DistillObjective(var, teacher, DistillWeights()).train()
    half, tokens = dtype != torch.float32, sum(pn * pn for pn in PATCH_NUMS)
    inputs = torch.zeros(IMAGES, dtype=torch.long), torch.randn(IMAGES, tokens - 1, 8)
    aliases = [torch.randn(IMAGES, count, 8) for count in geometry.tokens]
    own = (*objective.parameters(), *objective.buffers())
    with saved_tensors(own) as kept, torch.autocast("cpu", dtype=dtype if half else None, enabled=half):
        _passes(objective, *inputs, *aliases)
    return sum(kept.values())


@pytest.mark.parametrize("attention", ["dense", "grouped", "per-scale"])
@pytest.mark.parametrize("teacher", ["on", "off", "copies", "ema", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_of_a_real_step(teacher: str, attention: str, dtype: torch.dtype) -> None:
    assert_counted_as_kept(load_upstream(), teacher, attention, dtype)


def test_either_implementation_keeps_what_is_counted(upstream: Upstream) -> None:
    assert_counted_as_kept(upstream, "on", "dense", torch.float32)


def assert_counted_as_kept(upstream: Upstream, teacher: str, attention: str, dtype: torch.dtype) -> None:
    """Within a hundredth, although only a few of the blocks are counted."""
    plan = NetworkPlan(depth=DEPTH, classes=10, teacher=teacher, attention=attention)
    cost = activation_cost(upstream, plan, geometry_of(DEPTH), CODES, CPU, dtype)
    estimate = IMAGES * (cost.rest.saved_bytes + cost.blocks * cost.block.saved_bytes)
    estimate += cost.fixed_bytes - cost.chunk_bytes
    assert estimate == pytest.approx(kept_by_a_real_pass(upstream, plan, dtype), rel=0.01)


def test_a_separate_teacher_is_counted_a_little_too_high(upstream: Upstream) -> None:
    plan = NetworkPlan(depth=DEPTH, classes=10, teacher="separate")
    cost = activation_cost(upstream, plan, geometry_of(DEPTH), CODES, CPU)
    estimate = IMAGES * (cost.rest.saved_bytes + cost.blocks * cost.block.saved_bytes)
    assert 1 <= estimate / kept_by_a_real_pass(upstream, plan, torch.float32) < 1.15


def test_checkpointing_keeps_one_block_at_a_time() -> None:
    plan = NetworkPlan(depth=8, classes=10)
    cost = activation_cost(load_upstream(), plan, geometry_of(8), CODES, CUDA, torch.bfloat16)
    one, tokens = cost.block.saved_bytes, sum(pn * pn for pn in PATCH_NUMS)
    assert cost.blocks == 6 and cost.input_bytes == 2 * tokens * 64 * 8 < one / 5
    saved = cost.peak_bytes() - cost.peak_bytes(checkpointed=True)
    assert 6 * (one - cost.input_bytes) <= saved + one and saved < 6 * one


def test_an_average_without_alias_tokens_keeps_nothing(upstream: Upstream) -> None:
    """But its features, which are compared."""
    settings = TeacherSettings(aliases=False)
    plan = NetworkPlan(depth=DEPTH, classes=10, teacher="ema", settings=settings)
    none, with_gates, off = (
        activation_cost(upstream, plan, geometry_of(DEPTH), CODES, CPU).peak_bytes()
        for plan in (plan, replace(plan, settings=TeacherSettings()), replace(plan, teacher="off"))
    )
    assert off <= none < with_gates


def test_a_single_block_is_counted() -> None:
    for depth, teacher in ((1, "off"), (2, "on")):
        plan = NetworkPlan(depth=depth, classes=10, teacher=teacher)
        cost = activation_cost(load_upstream(), plan, geometry_of(depth), CODES, CPU)
        assert cost.peak_bytes() > 0 and cost.peak_bytes(checkpointed=True) > 0


def test_weights_on_each_of_several_processes() -> None:
    counts = TeacherOverhead(var_parameters=1000, teacher_parameters=10, var_flops=1, both_flops=1)
    size = Sizes(counts, parameters=1010, memory=16 * 1010, checkpoint=0, weights=0)

    def total(processes: int, **options: Any) -> int:
        values: dict[str, Any] = {"depth": 10} | options
        return sum(budget.weight_bytes(DistillOptions(**values), size, processes))

    assert total(1) == 16 * 1010
    assert sum(budget.weight_bytes(DistillOptions(depth=10), size._replace(still=50), 1)) == 16 * 1010 + 4 * 50
    assert total(8) == 20 * 1010, "DistributedDataParallel has a second copy of the gradients"
    assert total(8, parallel="fsdp") == 16 * (125 + 10) + 8 * 1000 * 4 // 10, (
        "shards, the whole teacher, four whole blocks"
    )
    assert total(8, parallel="fsdp", teacher="off") < total(8, parallel="fsdp")


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stage1")
    for name in ("cat", "dog"):
        for part in ("train", "val"):
            write_images(root / "data" / part / name, 4, seed=len(part))
    words = (
        "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 --latent-channels 8 "
        "--batch-size 4 --steps 2 --warm-autoencoder 1 --picture-every 2 --save-every 2"
    )
    assert main(["tokenizer", *words.split(), "--data", str(root / "data"), "--out", str(root / "run")]) == 0
    return root / "run"


def run(tokenizer: Path, out: Path, *options: str) -> int:
    words = "--preset demo --depth 3 --batch-size 4 --steps 2 --picture-every 2 --samples 0 --crops 2".split()
    return main(["distill", *words, "--tokenizer", str(tokenizer), "--out", str(out), *options])


def test_a_dry_run_prints_activations_and_auto(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    assert run(tokenizer, tmp_path / "run", "--dry-run", "--accumulate", "auto") == 0
    said = capsys.readouterr().out
    assert "for 4 images at once (--accumulate 1)" in said and "memory of an image: " in said and "GFLOP" in said
    assert "1 x" in said and "of blocks that run once, kept" in said and not (tmp_path / "run").exists()
    monkeypatch.setattr(ActivationCost, "peak_bytes", lambda self, checkpointed=False: 2**30)
    monkeypatch.setattr(DeviceKind, "free_memory", lambda self, device: 3 * 2**30)
    assert run(tokenizer, tmp_path / "run", "--accumulate", "auto") == 0
    assert "for 2 images at once (--accumulate 2)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["accumulate"] == 2


def test_a_run_whose_activations_do_not_fit_is_refused(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a CPU, which can swap."""
    monkeypatch.setattr(
        ActivationCost, "peak_bytes", lambda self, checkpointed=False: 2 ** (29 if checkpointed else 30)
    )
    monkeypatch.setattr(DeviceKind, "free_memory", lambda self, device: 3 * 2**30)
    assert run(tokenizer, tmp_path / "cpu") == 0
    monkeypatch.setattr(DeviceKind, "swaps", False)
    capsys.readouterr()
    assert run(tokenizer, tmp_path / "run") == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "4 images at once need about 4.0 GiB on each process" in said and "3.0 GiB free" in said
    assert said.endswith("give --accumulate 2 or --accumulate 1 --grad-checkpoint.\n")
    assert run(tokenizer, tmp_path / "run", "--grad-checkpoint") == 0
