"""What a stage-1 step is said to cost, against what a real one keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import inside, small_vae
from runs import TINY, parsed
from saved_tensors import saved_tensors
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from patches import Focus, Upstream, load_upstream
from refocus_ext.commands import main
from refocus_ext.engine.devices import DeviceKind
from refocus_ext.engine.memory.pass_cost import Input, pass_cost
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import build_alias
from refocus_ext.tokenizer.budget import budget_of
from refocus_ext.tokenizer.cost import memory_need, modules_of, step_cost
from refocus_ext.tokenizer.losses.adversarial import Adversary, adaptive_weight
from refocus_ext.tokenizer.losses.objective import StructureObjective, TokenizerObjective
from refocus_ext.tokenizer.losses.perceptual import untrained_lpips
from refocus_ext.tokenizer.recipe import StructureWeights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IMAGES = 2


class Step:
    """A real step of stage 1 on the CPU, with all its parts."""

    def __init__(self, upstream: Upstream, dtype: torch.dtype, recomputes: bool = False, full: bool = True) -> None:
        self.dtype, pyramid = dtype, FocusPyramid(image_size=64, states=3, rho_max=6.0)
        self.vae: Any = small_vae(upstream)
        Focus(pyramid, recomputes).apply(self.vae)
        self.vae.train()
        self.geometry = AliasGeometry.of(pyramid, stride=8, codes=64, code_dim=8, width=16, codebook="own")
        self.alias = build_alias(self.geometry, self.vae, CPU)
        self.lpips = untrained_lpips() if full else None
        self.critic = Adversary(64) if full else None
        self.objective = TokenizerObjective(StructureObjective(self.vae, StructureWeights(prefix=1)), self.alias)
        self.x = torch.rand(IMAGES, 3, 64, 64) * 2 - 1

    def cost(self) -> Any:
        modules = modules_of(self.vae, self.geometry, self.lpips, self.critic is not None)
        return step_cost(modules, StructureWeights(prefix=1), CPU, self.dtype)

    def loss(self) -> Tensor:
        """As `TokenizerTraining._backward` adds it up."""
        half = self.dtype != torch.float32
        with torch.autocast("cpu", dtype=self.dtype if half else None, enabled=half):
            out, alias = self.objective(self.x, 0, quantize=True, train_alias=True)
            loss, sharp = out.loss + alias.loss, out.recon
            if self.lpips is not None and self.critic is not None:
                sharp = sharp + self.lpips(out.image, self.x).mean()
                against = self.critic.generator_loss(out.image)
                weight = adaptive_weight(sharp, against, inside(self.vae).decoder.conv_out.weight)
                loss = loss + sharp + weight * against
        return loss

    def tensors(self) -> list[Tensor]:
        modules = [module for module in (self.objective, self.lpips, self.critic) if module is not None]
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]

    def kept(self) -> int:
        """Bytes that its forward pass keeps."""
        with saved_tensors(self.tensors()) as kept:
            self.loss()
        return sum(kept.values())

    def peak(self) -> int:
        """The most bytes that a forward and backward pass hold, besides weights."""
        self.loss().backward()  # what is made once and cached
        for tensor in self.tensors():
            tensor.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            self.loss().backward()
        assert seen.profiler is not None and seen.profiler.kineto_results is not None
        events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for _, count in sorted((event.start_ns(), event.nbytes()) for event in events):
            held += count
            peak = max(peak, held)
        return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_of_a_real_step(upstream: Upstream, dtype: torch.dtype) -> None:
    """Encodes of all focus states, three decodes, quantizer, LPIPS, critic and alias tokenizer, within a hundredth."""
    step = Step(upstream, dtype)
    cost = step.cost()
    assert (cost.encodes, cost.decodes) == (3, 3) and cost.mean_decodes == pytest.approx(2 + 2 / 3)
    assert IMAGES * cost.saved_bytes + cost.fixed_bytes == pytest.approx(step.kept(), rel=0.01)


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_peak_is_that_of_a_real_step(recomputes: bool) -> None:
    """At most a tenth too little and a third too much: gradients and temporaries are estimated."""
    step = Step(load_upstream(), torch.float32, recomputes, full=False)
    modules, cost = modules_of(step.vae, step.geometry, None, False), step.cost()
    plain, need = (memory_need(modules, cost, False, 1, checkpointed) for checkpointed in (False, recomputes))
    activations = need.of(IMAGES, 1) - plain.fixed
    assert 0.9 < activations / step.peak() < 1.33


def test_only_the_pass_of_the_reconstruction_keeps_activations_of_lpips() -> None:
    step = Step(load_upstream(), torch.float32)
    assert step.lpips is not None
    reconstruction = Input((3, 64, 64), grad=True)
    both = pass_cost(step.lpips, reconstruction, reconstruction)
    one = step.cost().perceptual
    assert one == pass_cost(step.lpips, reconstruction, Input((3, 64, 64)))
    assert 0.4 * both.saved_bytes < one.saved_bytes < 0.7 * both.saved_bytes


def test_recomputing_keeps_one_pass(upstream: Upstream) -> None:
    cost = Step(upstream, torch.float32).cost()
    passes = 3 * cost.encoder.saved_bytes + 3 * cost.decoder.saved_bytes
    saved = cost.peak_bytes() - cost.peak_bytes(checkpointed=True)
    assert 0.5 * passes < saved < passes - cost.decoder.saved_bytes + cost.perceptual.saved_bytes * 2


def test_counting_changes_nothing(upstream: Upstream) -> None:
    """Neither the network nor the real pyramid's cache, which must hold no fake tensors."""
    step = Step(upstream, torch.float32)
    before = {name: tensor.clone() for name, tensor in step.vae.state_dict().items()}
    modes = [module.training for module in step.vae.modules()]
    pyramid, random = step.vae.focus_pyramid, torch.get_rng_state()
    step.cost()
    assert all(torch.equal(before[name], tensor) for name, tensor in step.vae.state_dict().items())
    assert [module.training for module in step.vae.modules()] == modes and step.vae.focus_pyramid is pyramid
    assert "decode" not in vars(step.vae) and torch.equal(torch.get_rng_state(), random)
    assert torch.isfinite(step.loss())


def test_plain_var_encodes_and_decodes_once(vae: Any) -> None:
    Focus(FocusPyramid(image_size=64, states=3, blur="none")).apply(vae)
    cost = step_cost(modules_of(vae.train(), None, None, False), StructureWeights(prefix=1), CPU)
    assert (cost.encodes, cost.decodes, cost.mean_decodes) == (1, 1, 1)


def test_a_frozen_vqvae_costs_the_alias_tokenizer_alone(focus_vae: Any, pyramid: FocusPyramid) -> None:
    geometry = AliasGeometry.of(pyramid, stride=8, codes=64, code_dim=8, width=16, codebook="own")
    modules = modules_of(focus_vae.requires_grad_(False).eval(), geometry, None, False)
    cost = step_cost(modules, StructureWeights(prefix=1), CPU)
    need = memory_need(modules, cost, averaged=True, processes=1, checkpointed=False)
    own = 4 * sum(parameter.numel() for parameter in modules.alias.parameters()) if modules.alias else 0
    assert cost.encodes == cost.decodes == 0 < cost.losses.saved_bytes and need.gradients == own


def test_weights_are_counted_with_all_their_copies(focus_vae: Any) -> None:
    modules = modules_of(focus_vae.train(), None, None, False)
    cost = step_cost(modules, StructureWeights(prefix=1), CPU)
    count = sum(parameter.numel() for parameter in focus_vae.parameters())
    alone, many = (memory_need(modules, cost, averaged=True, processes=n, checkpointed=False) for n in (1, 8))
    assert alone.fixed + alone.gradients - cost.fixed_bytes == 4 * 5 * count, "weight, gradient, two moments, average"
    assert many.fixed - alone.fixed == 4 * count, "buckets of gradients"


def test_the_papers_preset_on_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 images a process in bf16: not half of fp32, and more than encoder and decoder alone."""
    options: Any = parsed("tokenizer", "--preset", "paper", "--precision", "bf16", "--lpips", "0")
    pyramid = FocusPyramid()
    vae = load_upstream().build_vae(vocab_size=8192, z_channels=32, ch=160, test_mode=False)
    Focus(pyramid).apply(vae)
    geometry = AliasGeometry.of(pyramid, stride=8, codes=512, code_dim=32, width=64, codebook="own")
    cost, budget = budget_of(options, vae.train(), geometry, None, CUDA, 8, 80 * 2**30)
    assert budget.share == 32 and 140 < budget.need.of(32, 1) / 2**30 < 160
    assert budget.choose(0) == 4 and budget.recomputed.of(32, 1) < 0.9 * 80 * 2**30
    assert cost.encodes == 4 and cost.decodes == 2
    more, whole = budget_of(options.replace(prefix=1.0), vae, geometry, None, CUDA, 8, 80 * 2**30)
    assert more.decodes == 3 and 25 < (whole.need.of(32, 1) - budget.need.of(32, 1)) / 2**30 < 40


# ------------------------------------------------------------------------------------------------ the command


def run(data: Path, out: Path, *options: str) -> int:
    return main(["tokenizer", *TINY, "--data", str(data), "--out", str(out), *options])


def test_auto_becomes_a_number_in_the_plan_and_in_config_json(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(image_tree, out, "--accumulate", "auto", "--steps", "6", "--dry-run") == 0
    assert "(--accumulate 1)" in capsys.readouterr().out and not out.exists()
    monkeypatch.setattr(DeviceKind, "free_memory", lambda self, device: 60 * 2**20)
    assert run(image_tree, out, "--accumulate", "auto", "--steps", "4", "--warm-autoencoder", "2") == 0
    said = capsys.readouterr().out
    number = json.loads((out / "config.json").read_text())["options"]["accumulate"]
    assert number == 4 and "for 1 image at once (--accumulate 4)" in said and "60 MiB are free" in said


def test_auto_may_choose_another_number_on_resume(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(image_tree, out, "--accumulate", "auto") == 0
    for path in (out / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    monkeypatch.setattr(DeviceKind, "free_memory", lambda self, device: 60 * 2**20)
    assert run(image_tree, out, "--accumulate", "auto") == 0
    assert "accumulate = 4 (was 1)" in capsys.readouterr().out


def test_a_run_that_does_not_fit_is_refused_before_it_begins(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DeviceKind, "free_memory", lambda self, device: 110 * 2**20)
    assert run(image_tree, tmp_path / "cpu", "--steps", "3") == 0, "a CPU can swap"
    monkeypatch.setattr(DeviceKind, "swaps", False)
    capsys.readouterr()
    assert run(image_tree, tmp_path / "run") == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "4 images at once need about" in said and "110 MiB free; give --accumulate" in said
    named = said[said.index("--accumulate") :].strip().removesuffix(".").split(" or ")[0].split()
    assert run(image_tree, tmp_path / "run", *named) == 0, "what it names fits"


def test_an_lpips_of_other_layers_is_counted(focus_vae: Any) -> None:
    class Distance(nn.Module):
        def forward(self, image: Tensor, target: Tensor) -> Tensor:
            return (image - target).square().flatten(1).mean(1)

    modules = modules_of(focus_vae.train(), None, Distance(), False)
    assert step_cost(modules, StructureWeights(prefix=1), CPU).perceptual.saved_bytes == 4 * 3 * 64 * 64
