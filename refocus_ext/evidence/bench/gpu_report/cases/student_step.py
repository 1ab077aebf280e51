"""Cases of stage 2's training step: beside upstream's own, by attention, with activation checkpointing, compiled.

Ours is `DistillTraining.train_step` on tokens from the host, as `distill` runs it. The parts of a case share one VAR and its AdamW
moments, so that their peaks of memory can be compared as they are; each part's patches are on the VAR during its turns only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from patches import Patch, patched
from patches.protocols import as_module
from patches.upstream_trainer import upstream_train_step
from refocus_ext.distill.command import network_plan, recipe_of
from refocus_ext.distill.networks import Networks, adamw, build_networks, training_patches
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.recipe import set_lr_and_decay
from refocus_ext.distill.training import DistillTraining
from refocus_ext.distill.validation import ValidationTokens
from refocus_ext.engine.devices import uncompiled
from refocus_ext.engine.step_result import StepResult
from refocus_ext.engine.training import RunPlan
from refocus_ext.errors import RunFailed
from refocus_ext.evidence.bench.gpu_report.bench import CLASSES, Bench, Comparison, NoData
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.options.presets import preset

UPSTREAM, UPSTREAM_TOKENS = "upstream, as it runs", "upstream, tokens given"
ALONE, TAUGHT = "ours, no teacher", "ours, with teacher"
EAGER, COMPILED = "ours, with teacher, eager", "ours, with teacher, compiled"
SETTLE = 2  # runs in which compiled parts are compiled again for other shapes or strides
NO_IMAGES: Any = ()


class MeasuredTraining(DistillTraining):
    """Stage 2's training without validation images."""

    def _validation_tokens(self, val: ImageSource) -> ValidationTokens:
        return ValidationTokens(*torch.empty(3, 0, dtype=torch.long).unbind())


def options_of(depth: int, batch: int, **changes: Any) -> DistillOptions:
    """The paper's preset."""
    values: dict[str, Any] = {**preset("paper", "distill"), "depth": depth, "batch_size": batch, **changes}
    return DistillOptions(**values)


class StepBench:
    """The networks of a case at one depth and batch, and the parts that use them."""

    def __init__(self, bench: Bench, depth: int, batch: int) -> None:
        self.bench, self.depth, self.batch = bench, depth, batch
        self.tokenizer = bench.tokenizer()
        self.geometry, self.teacher = bench.teacher_geometry(depth), bench.teacher(depth)
        self.tokens = bench.tokens(batch)
        self.moments: Any = None  # of the VAR's AdamW, shared by all parts

    @functools.cached_property
    def var(self) -> Any:
        return self.bench.var(self.tokenizer.vae, self.depth)

    def ours(self, name: str, *, teacher: bool = True, attention: str = "auto", checkpoint: bool = False) -> Part:
        """A part of our training; "auto" is the attention that `distill` takes on this device."""
        options = options_of(
            self.depth, self.batch, attention=attention, grad_checkpoint=checkpoint, teacher="on" if teacher else "off"
        )
        training = self.training(options, Networks(self.var, self.teacher if teacher else None))
        plan = network_plan(options, CLASSES, self.bench.device)
        blocks = self.geometry.blocks if teacher else 0
        return Part(
            name,
            step_of(training, [self.tokens]),
            ready=lambda: all_patched(self.var, training_patches(plan, blocks, blocks)),
            check=step_was_taken,
            images=self.batch,
            flops=self.bench.step_flops(self.depth, self.batch, teacher),
        )

    def training(self, options: DistillOptions, networks: Networks) -> DistillTraining:
        training = MeasuredTraining(
            RunPlan.of(options),
            recipe_of(options, held_out=True),
            self.bench.world,
            None,
            self.tokenizer,
            networks,
            NoData(),
            NO_IMAGES,
        )
        self.share_moments(training.optimizers["var"])
        return training

    def share_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """A second pair of moments would not fit beside d20's activations."""
        if self.moments is None:
            self.moments = optimizer.state
        optimizer.state = self.moments

    def upstreams(self, name: str, images: bool) -> Part:
        """A part of upstream's trainer: with images it tokenizes them at each step, as upstream does."""
        bench, labels = self.bench, self.tokens.label.to(self.bench.device)
        given: dict[str, Any] = {"images_B3HW": bench.images(self.batch)}
        if not images:
            given = {"idx_BL": self.tokens.structure.to(bench.device)}
        if bench.upstream.kind != "submodule":
            return Part(name, lambda: None, missing="not measured: the submodule var_upstream is not there")
        optimizer = adamw(as_module(self.var))
        set_lr_and_decay(optimizer, 1e-4, 0.05)
        self.share_moments(optimizer)
        bf16, vae = bench.half == torch.bfloat16, bench.vae() if images else self.tokenizer.vae
        try:
            step = upstream_train_step(vae, self.var, optimizer, labels, bf16=bf16, **given)
        except ModuleNotFoundError as error:
            why = f"not measured: upstream's trainer needs {error.name} (pip install pytz typed-argument-parser)"
            return Part(name, lambda: None, missing=why)
        return Part(name, step, images=self.batch, flops=bench.step_flops(self.depth, self.batch, False))


def step_of(training: Any, batches: Sequence[Any]) -> Callable[[], StepResult]:
    """A call is one step in the middle of the run, where the learning rate is neither 0 nor a validation due."""
    return functools.partial(training.train_step, training.plan.steps // 2, batches)


def step_was_taken(result: StepResult) -> None:
    """
    Raises:
        RunFailed: it was skipped, and so was part of its work.
    """
    if bool(result.bad):
        raise RunFailed("a loss or gradient was not finite, so the step was skipped")


@contextlib.contextmanager
def all_patched(model: Any, patches: Sequence[Patch]) -> Iterator[None]:
    """Inside, the model has all these patches."""
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patched(model, patch))
        yield


# ------------------------------------------------------------------------------------------------ cases


def step(bench: Bench, depth: int, batch: int) -> Comparison:
    case = StepBench(bench, depth, batch)
    parts = [
        case.upstreams(UPSTREAM, images=True),
        case.upstreams(UPSTREAM_TOKENS, images=False),
        case.ours(ALONE, teacher=False),
        case.ours(TAUGHT),
    ]
    return Comparison(
        f"Stage 2, training step of VAR-d{depth}, batch {batch}",
        parts,
        (
            "Upstream's `VARTrainer.train_step` tokenizes its images, which are on the device, at every step; ours reads tokens "
            "from a cache. MFU counts the VAR's FLOPs (with a teacher, the teacher's too), not those of upstream's VQVAE. Each "
            "peak includes the networks of all four parts: one VAR with its moments, the teacher, and two VQVAEs (0.8 GiB).",
        ),
    )


def attention(bench: Bench, depth: int, batch: int) -> Comparison:
    case = StepBench(bench, depth, batch)
    parts = [case.ours(word, attention=word) for word in ("dense", "grouped", "per-scale")]
    return Comparison(f"Attention of the training pass, d{depth} with teacher, batch {batch}", parts)


def checkpointing(bench: Bench, depth: int, batch: int) -> Comparison:
    case = StepBench(bench, depth, batch)
    parts = [case.ours("all activations kept"), case.ours("--grad-checkpoint", checkpoint=True)]
    return Comparison(f"Activation checkpointing, d{depth} with teacher, batch {batch}", parts)


def compiled(bench: Bench, depth: int, batch: int) -> Comparison:
    """Networks of its own, compiled as `distill --compile` does; the eager part runs them with compilation off."""
    case, options = StepBench(bench, depth, batch), options_of(depth, batch, compile=True)
    plan = network_plan(options, CLASSES, bench.device)
    with bench.building():
        networks = build_networks(plan, bench.upstream, case.tokenizer, case.geometry, bench.device)
    run = step_of(case.training(options, networks), [case.tokens])
    flops = bench.step_flops(depth, batch, True)
    parts = [
        Part(EAGER, run, ready=uncompiled, check=step_was_taken, images=batch, flops=flops),
        Part(COMPILED, run, settle=SETTLE, check=step_was_taken, images=batch, flops=flops),
    ]
    return Comparison(f"torch.compile, stage 2's step of d{depth} with teacher, batch {batch}", parts)
