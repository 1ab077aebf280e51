"""Cases of stage 1's training step at the paper's losses, with GAN and LPIPS: memory layouts, and compiled.

Ours is `TokenizerTraining.train_step` on images from the host, as `tokenizer` runs it. LPIPS has random VGG weights, which cost the
same as trained ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from refocus_ext.engine.devices import uncompiled
from refocus_ext.engine.training import RunPlan
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison, NoData, held_bytes
from refocus_ext.evidence.bench.gpu_report.cases.student_step import SETTLE, step_of, step_was_taken
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.images.crops import Sample
from refocus_ext.options.presets import preset
from refocus_ext.tokenizer.budget import budget_of
from refocus_ext.tokenizer.command import recipe_of
from refocus_ext.tokenizer.losses.critic import Critic
from refocus_ext.tokenizer.losses.perceptual import untrained_lpips
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.plan import alias_geometry, build_vae
from refocus_ext.tokenizer.training import TokenizerTraining

PLAIN, CHANNELS_LAST = "NCHW", "channels_last"


def options_of(bench: Bench, batch: int, **changes: Any) -> TokenizerOptions:
    """The paper's preset at the bench's geometry."""
    size = bench.geometry
    geometry = dict(
        image_size=size.image_size, patch_nums=size.patch_nums, codebook_size=size.codes, ch=size.ch,
        focus_states=size.states, rho_max=size.rho_max, batch_size=batch,
    )  # fmt: skip
    values: dict[str, Any] = {**preset("paper", "tokenizer"), **geometry, **changes}
    return TokenizerOptions(**values)


def training_of(bench: Bench, options: TokenizerOptions, lpips: torch.nn.Module) -> TokenizerTraining:
    vae = build_vae(bench.upstream, options, bench.pyramid, bench.device)
    geometry, unread = alias_geometry(options, bench.pyramid), NoData()
    return TokenizerTraining(
        RunPlan.of(options),
        recipe_of(options),
        bench.world,
        None,
        vae,
        geometry,
        lpips,
        unread,  # type: ignore[arg-type]
    )


def part(bench: Bench, name: str, training: TokenizerTraining, batch: int, **more: Any) -> Part:
    images, labels = bench.images(batch).cpu(), torch.zeros(batch, dtype=torch.long)
    sample = Sample(images.pin_memory() if bench.kind.pins_memory else images, labels, None)
    optimizers = [training.optimizer]
    if isinstance(training.critic, Critic):
        optimizers.append(training.critic.optimizer)
    held = lambda: held_bytes(*optimizers) + averaged_bytes(training)  # noqa: E731
    return Part(name, step_of(training, [sample]), check=step_was_taken, images=batch, holds=held, **more)


def averaged_bytes(training: TokenizerTraining) -> int:
    """Bytes of the averaged VQVAE; the averaged alias tokenizer is a thousandth of it."""
    if not training.recipe.ema:
        return 0
    return sum(p.numel() * p.element_size() for p in training.averages.vae.parameters())


# ------------------------------------------------------------------------------------------------ cases


def step(bench: Bench, batch: int) -> Comparison:
    lpips = untrained_lpips(bench.device)
    parts = []
    for name, layout in ((PLAIN, "off"), (CHANNELS_LAST, "on")):
        training = training_of(bench, options_of(bench, batch, channels_last=layout), lpips)
        parts.append(part(bench, name, training, batch))
    return Comparison(f"Stage 1, training step, micro-batch {batch}", parts, (estimate(bench, batch), LPIPS_NOTE))


LPIPS_NOTE = "With GAN, LPIPS (random VGG weights, the same work) and the alias tokenizer; without reading images."


def estimate(bench: Bench, batch: int) -> str:
    """What the dry run says about this step's memory."""
    options, cpu = options_of(bench, batch), torch.device("cpu")
    vae = build_vae(bench.upstream, options, bench.pyramid, cpu)
    geometry = alias_geometry(options, bench.pyramid)
    cost, budget = budget_of(options, vae, geometry, untrained_lpips(), bench.device, processes=1, free=None)
    need = budget.plain.of(batch, accumulate=1)
    return f"The dry run estimates {need / 2**30:.1f} GiB and {cost.flops * batch / 1e12:.1f} TFLOP."


def compiled(bench: Bench, batch: int) -> Comparison:
    training = training_of(bench, options_of(bench, batch, compile=True), untrained_lpips(bench.device))
    parts = [
        part(bench, "eager", training, batch, ready=uncompiled),
        part(bench, "compiled", training, batch, settle=SETTLE),
    ]
    alone = [replace(one, holds=lambda: 0) for one in parts]  # what the training holds is both parts'
    return Comparison(f"torch.compile, stage 1's step, micro-batch {batch}", alone, (LPIPS_NOTE,))
