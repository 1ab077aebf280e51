"""Every path that a GPU takes, run on fake CUDA tensors: no tensor is on the wrong device, and no training step waits for the GPU.

What cannot be rehearsed is listed in `fake_cuda.py`, and these paths: reading images (on the CPU), reviving codes and k-means
(they read values; `test_codebooks_change_on_the_device` runs what comes before), a Generator on the GPU (its place is taken by the
default one), FSDP2 and DistributedDataParallel (gloo on CPUs runs them elsewhere in the suite).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import small_vae
from fake_cuda import DEVICE, WORLD, HostWaited, fake_cuda
from inceptions import random_inception
from runs import TINY, TRAINED_WITH, parsed
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from patches import FastSampling, Focus, Upstream, load_upstream, patched
from patches.sampling import Guidance
from refocus_ext.distill.command import network_plan, recipe_of
from refocus_ext.distill.networks import build_networks
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.training import DistillTraining
from refocus_ext.distill.validation import _score, _sums, evaluating
from refocus_ext.engine.devices import autocast
from refocus_ext.engine.training import RunPlan
from refocus_ext.evaluation.frechet import FeatureStatistics
from refocus_ext.evaluation.inception import load_inception
from refocus_ext.images.crops import Sample
from refocus_ext.optics import psf
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.sampling.editing import edit
from refocus_ext.sampling.sampler import Prefixes, sample_images
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokenizer.alias.training import AliasTraining
from refocus_ext.tokenizer.command import recipe_of as tokenizer_recipe_of
from refocus_ext.tokenizer.losses.dino import untrained_dino
from refocus_ext.tokenizer.plan import alias_geometry, build_vae, make_pyramid
from refocus_ext.tokenizer.training import TokenizerTraining
from refocus_ext.tokens.tokenize import prepare, tokenize
from refocus_ext.tokens.trained_tokenizer import Tokenizer

CPU = torch.device("cpu")
STEP = [*TINY, "--alias-width", "8", "--ema", "0.99", "--revive", "100", "--gan", "0", "--warm-autoencoder", "2"]


@pytest.fixture
def upstream() -> Upstream:
    """One implementation: the submodule if it is there; both have the same operations (`tests/vanilla_var/`)."""
    return load_upstream()


@pytest.fixture(autouse=True)
def _no_fake_tensor_is_cached() -> Iterator[None]:
    """The filters of the pyramid are cached by device; a fake one must not reach another test."""
    psf._cached_otf.cache_clear()
    yield
    psf._cached_otf.cache_clear()
    torch.clear_autocast_cache()


class Data:
    """A data set that is never read."""

    known_broken: set[int] = set()  # noqa: RUF012
    broken_limit = 1
    images = SimpleNamespace(classes=("cat", "dog"))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, _: object) -> Any:
        raise AssertionError("the rehearsal reads no images")


def batch(size: int, side: int, micro: int = 1) -> list[Any]:
    """A batch as a loader with pinned memory gives it: micro-batches on the host."""
    return [Sample(torch.zeros(size, 3, side, side), torch.zeros(size, dtype=torch.long), None) for _ in range(micro)]


def rehearse(training: Any, step: int, batches: list[Any]) -> dict[str, Any]:
    """A step that may fill caches, then one that must not wait."""
    for waits in (True, False):
        with fake_cuda(waits):
            values, bad = training.train_step(step, batches)
            assert bad.device == DEVICE and bad.dtype == torch.bool
            tensors = [value for value in values.values() if isinstance(value, Tensor)]
            assert tensors and all(value.device == DEVICE and value.ndim == 0 for value in tensors)
    return values


# ------------------------------------------------------------------------------------------------ stage 1


def stage_one(upstream: Upstream, *options: str, kind: type[TokenizerTraining] = TokenizerTraining) -> Any:
    chosen = parsed("tokenizer", *STEP, *options)
    pyramid = make_pyramid(chosen)
    vae = build_vae(upstream, chosen, pyramid, CPU)
    backbone = untrained_dino(64) if chosen.disc == "dino" else None
    with fake_cuda(waits=True):
        geometry = alias_geometry(chosen, pyramid)
        lpips = perceptual().to(DEVICE) if chosen.lpips else None
        training = kind(
            RunPlan.of(chosen),
            tokenizer_recipe_of(chosen),
            WORLD,
            None,
            vae.to(DEVICE),
            geometry,
            lpips,
            Data(),  # type: ignore[arg-type]
            None if backbone is None else backbone.to(DEVICE),
        )
    training.codebooks.initialise = lambda step: None  # type: ignore[method-assign]
    return training


def perceptual() -> torch.nn.Module:
    from refocus_ext.tokenizer.losses.perceptual import untrained_lpips

    return untrained_lpips()


@pytest.mark.parametrize(
    "options",
    [
        "--blur none --alias off",
        "--accumulate 2 --precision fp16 --gan 0.5 --gan-start 0 --lecam 0.1 --lpips 1",
        "--alias-codebook shared --channels-last off --precision fp32",
        "--ema 0 --revive 0 --clip 0 --channels-last on",
        pytest.param(
            "--gan 0.5 --gan-start 0 --disc dino --disc-augment on --weight-decay 0.1 --dropout 0.1 --precision bf16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_of_the_tokenizer(upstream: Upstream, options: str) -> None:
    training = stage_one(upstream, *options.split())
    values = rehearse(training, 3, batch(2, 32, micro=2 if "--accumulate 2" in options else 1))
    assert "commitment" in values and ("gan" in values) == ("--gan 0.5" in options)


def test_a_step_without_quantization(upstream: Upstream) -> None:
    assert "commitment" not in rehearse(stage_one(upstream, "--gan", "0.5", "--gan-start", "0"), 0, batch(2, 32))


def test_a_step_of_the_alias_tokenizer_alone(upstream: Upstream) -> None:
    assert "explained1" in rehearse(stage_one(upstream, kind=AliasTraining), 0, batch(2, 32))


def test_a_step_leaves_averaged_weights_and_hits_on_the_device(upstream: Upstream) -> None:
    training = stage_one(upstream)
    assert {"commitment", "anchor"} <= rehearse(training, 3, batch(2, 32)).keys()
    state = training.state_dict()
    assert all(value.device == DEVICE for value in state["ema"].values())
    assert state["revival"]["hits_V"].device == DEVICE


# ------------------------------------------------------------------------------------------------ tokens


def fake_tokenizer(upstream: Upstream) -> Tokenizer:
    """A tokenizer of 64 px on the fake device."""
    pyramid, vae = FocusPyramid(image_size=64, states=3, rho_max=6.0), small_vae(upstream)
    Focus(pyramid).apply(vae)
    alias = AliasTokenizer(AliasGeometry.of(pyramid, stride=8, codes=16, code_dim=4, width=8, codebook="own"))
    with fake_cuda(waits=True):
        return prepare(Tokenizer(vae.to(DEVICE), alias.to(DEVICE), pyramid, {}, TRAINED_WITH, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_images_become_tokens(upstream: Upstream, precision: str) -> None:
    tokenizer = fake_tokenizer(upstream)
    for waits in (True, False):
        with fake_cuda(waits):
            structure, alias = tokenize(tokenizer, torch.zeros(2, 3, 64, 64), precision)
            assert structure.shape == (2, 30) and alias.shape == (2, 20)
            assert structure.device == alias.device == DEVICE and structure.dtype == torch.long


# ------------------------------------------------------------------------------------------------ stage 2


def stage_two(upstream: Upstream, *options: str) -> DistillTraining:
    chosen = parsed(
        "distill", "--preset", "demo", "--depth", "3", "--teacher-blocks", "2", "--batch-size", "4", *options
    )
    tokenizer = fake_tokenizer(upstream)
    geometry = None
    if chosen.teacher != "off":
        assert tokenizer.alias is not None
        theirs, nums = tokenizer.alias.geometry, (1, 2, 3, 4)
        states = tokenizer.pyramid.states_of(nums)
        geometry = TeacherGeometry(192, theirs.code_dim, theirs.grids, nums, states, blocks=2, mask=chosen.mask)
    with mock.patch("refocus_ext.distill.networks.load_start"):
        networks = build_networks(network_plan(chosen, 2, DEVICE), upstream, on_cpu(upstream), geometry, CPU)
    with fake_cuda(waits=True), mock.patch.object(DistillTraining, "_validation_tokens", lambda *_: None):
        for network in networks:
            if network is not None:
                network.to(DEVICE)
        recipe = recipe_of(chosen, held_out=True)
        return DistillTraining(RunPlan.of(chosen), recipe, WORLD, None, tokenizer, networks, Data(), None)  # type: ignore[arg-type]


def on_cpu(upstream: Upstream) -> Any:
    """What `build_networks` reads of a tokenizer."""
    return SimpleNamespace(vae=small_vae(upstream))


def token_batches(micro: int = 1) -> list[Any]:
    one = SimpleNamespace(
        label=torch.zeros(2, dtype=torch.long),
        structure=torch.zeros(2, 30, dtype=torch.int16),
        alias=torch.zeros(2, 20, dtype=torch.int16),
    )
    return [one] * micro


@pytest.mark.parametrize(
    "options",
    [
        "--attention dense --accumulate 2",
        "--mask privileged --precision fp16",
        "--attention per-scale --teacher separate",
        "--attention per-scale --teacher copies --teacher-aliases other",
        "--teacher ema --precision fp16",
        "--teacher ema --teacher-aliases none --temperature-logit 2",
        "--teacher off --precision fp32 --grad-checkpoint",
        "--grad-checkpoint --shared-aln on --lambda-feat 0 --lambda-logit 0",
    ],
)
def test_a_step_of_distillation(upstream: Upstream, options: str) -> None:
    training = stage_two(upstream, *options.split())
    micro = 2 if "--accumulate 2" in options else 1
    values = rehearse(training, 0, token_batches(micro))  # step 0 logs the terms of every scale too
    assert ("kl" in values) == ("off" not in options) and {"Lm", "acc_64", "grad_norm"} <= set(values)


def test_a_step_that_tokenizes_its_images(upstream: Upstream) -> None:
    assert "ce_student" in rehearse(stage_two(upstream), 0, batch(2, 64))


@pytest.mark.parametrize("teacher", ["on", "separate", "off"])
def test_validation(upstream: Upstream, teacher: str) -> None:
    """Up to the sums, which are then read; they are float64 under autocast."""
    training = stage_two(upstream, "--teacher", teacher)
    with fake_cuda(waits=True), training.autocast(), evaluating(training.objective), torch.no_grad():
        label_B, idx_BL, alias_BT = training._tokens(token_batches()[0])
        alias_XK = [training.embed.alias(alias_BT)] * (0 if teacher == "off" else 3)
        nll, hit, variance = _score(training.objective, label_B, training.embed.structure(idx_BL), idx_BL, alias_XK)
        sums = _sums(nll, hit, variance, torch.ones(2).to(DEVICE), training.var.begin_ends)
        assert (
            sums.device == DEVICE and sums.dtype == torch.float64 and sums.shape == (1 if teacher == "off" else 4, 15)
        )


# ------------------------------------------------------------------------------------------------ sampling and measuring


class DefaultGenerator:
    """In the place of a generator on the GPU, which cannot be made without one."""

    def __init__(self, device: object = None) -> None:
        pass

    def manual_seed(self, _: int) -> None:
        return None


@pytest.fixture
def student(upstream: Upstream) -> Any:
    torch.manual_seed(0)
    vae = small_vae(upstream)
    var = upstream.build_var(vae, depth=2, embed_dim=64, num_heads=2, num_classes=3)
    for network in (vae, var):
        network.requires_grad_(False).eval()
    with fake_cuda(waits=True):
        vae.to(DEVICE), var.to(DEVICE)
    geometry = SimpleNamespace(vocab_size=64, image_size=64)
    return SimpleNamespace(var=var, vae=vae, device=DEVICE, geometry=geometry, tokens=lambda x: vae.img_to_idxBl(x))


@pytest.mark.parametrize("how", ["stock", "fast", "smooth", "prefixes", "edit"])
def test_sampling(student: Any, how: str) -> None:
    guidance = Guidance(smooth=how == "smooth")
    fast = patched(student.var, FastSampling()) if how != "stock" else contextlib.nullcontext()
    generator = mock.patch.object(torch, "Generator", DefaultGenerator)
    with fake_cuda(waits=True), generator, fast, autocast(torch.bfloat16, DEVICE), torch.no_grad():
        if how == "edit":
            drawn = edit(
                student, torch.zeros(1, 3, 64, 64), torch.ones(4, 4, dtype=torch.bool), [0, 1], 0, guidance
            ).edited_B3HW
        else:
            watch = Prefixes(student) if how == "prefixes" else None
            drawn = sample_images(student, [0, 1], seed=3, guidance=guidance, watch=watch)
        assert drawn.shape == (2, 3, 64, 64) and drawn.device == DEVICE and drawn.dtype == torch.float32


def test_upstreams_own_sampler(student: Any) -> None:
    with fake_cuda(waits=True), torch.no_grad():
        drawn = student.var.autoregressive_infer_cfg(B=2, label_B=torch.zeros(2, dtype=torch.long).to(DEVICE), top_k=9)
        assert drawn.device == DEVICE


def test_the_features_of_fid(tmp_path: Path) -> None:
    torch.save(random_inception(), tmp_path / "inception.pth")
    network = load_inception(str(tmp_path / "inception.pth"))
    with fake_cuda(waits=True):
        network.to(DEVICE)
        features = network.activations(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=DEVICE))
        assert features.pool_BD.device == features.spatial_BS.device == DEVICE
        assert network.class_logits(features.pool_BD).shape == (2, 1008)
        statistics = FeatureStatistics()
        statistics.update(features.pool_BD)
        assert statistics.count == 2


# ------------------------------------------------------------------------------------------------ the rehearsal itself


def test_what_it_finds() -> None:
    """Each kind of fault that a GPU would show, injected."""
    with fake_cuda():
        x = torch.zeros(3, device=DEVICE)
        with pytest.raises(RuntimeError, match=r"same device|Device Propagation"):
            x + torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            float(x.sum())
        with pytest.raises(HostWaited):
            x.cpu()
        with pytest.raises(HostWaited):
            torch.zeros(3).to(DEVICE)
        torch.zeros(3).to(DEVICE, non_blocking=True)


def test_its_backward_pass_is_autograds() -> None:
    """On real tensors: the same gradients as the engine's, through a custom function, a checkpoint and shared leaves."""
    from fake_cuda import _walk
    from torch.utils.checkpoint import checkpoint

    from refocus_ext.distill.losses import distillation_loss

    torch.manual_seed(0)
    weight, x = torch.randn(5, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    targets = torch.randint(5, (2, 3))
    hidden = checkpoint(lambda h: h.tanh() * x.mean(), x, use_reentrant=False)
    loss, _ = distillation_loss(hidden, None, targets, [(0, 3)], student_head=lambda h, images: h @ weight.T)
    expected = torch.autograd.grad(loss, (weight, x), retain_graph=True)
    found = _walk([loss], [None])
    for leaf, theirs in zip((weight, x), expected, strict=True):
        assert torch.allclose(found[id(leaf)][1], theirs, atol=1e-6)
