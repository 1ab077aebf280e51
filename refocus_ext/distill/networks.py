"""Student and teacher, built, patched and initialized."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from patches import BlockCausal, Patch, Upstream
from patches.block_causal import GROUPS
from patches.checkpointed_block import Checkpointed
from patches.model_parts import blocks_of, compile_blocks
from patches.protocols import VAR, as_module
from patches.teacher_block import Recording
from refocus_ext.distill import recipe
from refocus_ext.distill.start import TABLE, Start, with_rows
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherSettings
from refocus_ext.distill.teacher.kinds import teacher_class
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.upstream_weights import var_state_dict
from refocus_ext.storage.weights import load_strictly
from refocus_ext.tokens.trained_tokenizer import Tokenizer


@dataclass(frozen=True)
class NetworkPlan:
    """The networks of a run.

    Args:
        depth: blocks of the VAR; its width is 64 times as much.
        classes: number of classes of its embedding.
        shared_aln: one AdaLN for all blocks.
        teacher: a key of `teacher.kinds.KINDS`, or "off".
        attention: of the training pass: "dense", "grouped" or "per-scale".
        grad_checkpoint: recompute activations in the backward pass.
        compile: torch.compile the blocks that run once.
        start: weights to start from.
        seed: of the weights.
        settings: of the teacher.
    """

    depth: int
    classes: int
    shared_aln: bool = False
    teacher: str = "on"
    attention: str = "dense"
    grad_checkpoint: bool = False
    compile: bool = False
    start: Start | None = None
    seed: int = 0
    settings: TeacherSettings = field(default_factory=TeacherSettings)


class Networks(NamedTuple):
    """Student and teacher, patched, on their device, in train mode."""

    var: VAR
    teacher: AliasTeacher | None


def build_networks(
    plan: NetworkPlan,
    upstream: Upstream,
    tokenizer: Tokenizer,
    geometry: TeacherGeometry | None,
    device: torch.device,
) -> Networks:
    """Builds the student first, so that its weights do not depend on the teacher."""

    def build(recorded: int) -> Any:
        torch.manual_seed(stream_seed(plan.seed, Stream.WEIGHTS))
        var = upstream.build_var(
            tokenizer.vae, depth=plan.depth, num_classes=plan.classes, shared_aln=plan.shared_aln, device=device
        )
        if plan.start:
            load_start(var, plan.start)
        return _patched(var, plan, recorded, geometry.blocks if geometry else 0)

    var, teacher, kind = build(geometry.blocks if geometry else 0), None, teacher_class(plan.teacher)
    if geometry and kind:
        seed = stream_seed(plan.seed, Stream.SECOND_WEIGHTS)
        teacher = kind.build(geometry, partial(build, 0), seed, plan.settings).to(device)
    return Networks(var.train(), teacher.train() if teacher else None)


def _patched(var: VAR, plan: NetworkPlan, recorded: int, doubled: int) -> VAR:
    """Patches the student for a whole run, so that upstream is checked for drift once and not at every step."""
    for patch in training_patches(plan, recorded, doubled):
        patch.apply(var)
    if plan.compile:
        compile_blocks(blocks_of(var)[: plan.depth - doubled])
    return var


def training_patches(plan: NetworkPlan, recorded: int, doubled: int) -> list[Patch]:
    """The patches of a student in training, in the order in which they are applied.

    Args:
        recorded, doubled: number of last blocks that are recorded, and that run twice.
    """
    patches: list[Patch] = [Recording(recorded), *attention_patches(plan.attention)]
    if plan.grad_checkpoint:
        patches.append(Checkpointed(keep=doubled))
    return patches


def attention_patches(attention: str) -> list[Patch]:
    """What makes a VAR attend as `NetworkPlan.attention` says."""
    return [] if attention == "dense" else [BlockCausal(GROUPS if attention == "grouped" else None)]


def load_start(var: VAR, start: Start) -> None:
    """Loads VAR weights strictly, with the class embedding that is planned for them.

    Raises:
        UsageError: the file has no VAR weights, or a VAR of another geometry.
    """
    state = var_state_dict(start.path)
    if start.rows is not None:
        state = with_rows(state, start.rows, var.state_dict()[TABLE])
    load_strictly(as_module(var), state, f"{start.path} does not fit this student ({{reason}}); give another file.")


def adamw(module: nn.Module, teacher_lr: float = 1.0) -> torch.optim.AdamW:
    """VAR's optimizer; fused on a CPU too, where that saves a copy of the gradients.

    Args:
        teacher_lr: factor of the learning rate for a teacher's alias modules.
    """
    parts: list[tuple[nn.Module, float]] = [(module, 1.0)]
    if isinstance(module, AliasTeacher):
        networks = ((module.own_network, 1.0), (module.alias_modules, teacher_lr))
        parts = [(network, rate) for network, rate in networks if network is not None]
    groups = [
        group | {"lr_sc": factor}
        for part, factor in parts
        for group in recipe.weight_decay_groups(part.named_parameters())
    ]
    return torch.optim.AdamW(groups, betas=recipe.BETAS, fused=True)
