"""Student and teacher, built, patched and initialized."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from patches import BlockCausal, Upstream
from patches.block_causal import GROUPS
from patches.checkpointed_block import Checkpointed
from patches.teacher_block import Recording
from refocus_ext.distill import recipe
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher
from refocus_ext.distill.teacher.kinds import KINDS
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.upstream_weights import var_state_dict
from refocus_ext.storage.weights import load_strictly
from refocus_ext.tokens.trained_tokenizer import Tokenizer


class Networks(NamedTuple):
    """Student and teacher, patched, on their device, in train mode."""

    var: Any
    teacher: AliasTeacher | None


def build_networks(
    options: DistillOptions,
    upstream: Upstream,
    tokenizer: Tokenizer,
    geometry: TeacherGeometry | None,
    classes: int,
    device: torch.device,
) -> Networks:
    """The student first: its weights are the same with any teacher and with none."""

    def build(recorded: int) -> Any:
        torch.manual_seed(stream_seed(options.seed, Stream.WEIGHTS))
        shared_aln = options.shared_aln == "on"
        var = upstream.build_var(
            tokenizer.vae, depth=options.depth, num_classes=classes, shared_aln=shared_aln, device=device
        )
        if options.init:
            load_init(var, options)
        return _patched(var, options, recorded)

    var, teacher, kind = build(geometry.blocks if geometry else 0), None, KINDS[options.teacher]
    if geometry and kind:
        teacher = kind.build(geometry, partial(build, 0), stream_seed(options.seed, Stream.SECOND_WEIGHTS)).to(device)
    return Networks(var.train(), teacher.train() if teacher else None)


def _patched(var: Any, options: DistillOptions, recorded: int) -> Any:
    """For a whole run, so that upstream is checked for drift once and not at every step."""
    doubled = 0 if options.teacher == "off" else options.teacher_blocks
    Recording(recorded).apply(var)
    if options.attention != "dense":
        BlockCausal(GROUPS if options.attention == "grouped" else None).apply(var)
    if options.grad_checkpoint:
        Checkpointed(keep=doubled).apply(var)
    if options.compile:
        for block in list(var.blocks)[: len(var.blocks) - doubled]:
            block.compile()
    return var


def load_init(var: Any, options: DistillOptions) -> None:
    """Loads VAR weights strictly.

    Raises:
        UsageError: the file holds none, or those of another geometry.
    """
    load_strictly(
        var,
        var_state_dict(Path(options.init)),
        f"--init {options.init} does not fit this student ({{reason}}); the published var_dN.pth need --depth N, 1000 "
        "classes and a tokenizer of preset vanilla.",
    )


def adamw(module: nn.Module, teacher_lr: float = 1.0) -> torch.optim.AdamW:
    """VAR's optimizer; fused also on a CPU, where it saves a copy of the gradients.

    Args:
        teacher_lr: factor on the learning rate of a teacher's alias modules.
    """
    parts: list[tuple[nn.Module, float]] = [(module, 1.0)]
    if isinstance(module, AliasTeacher):
        own = [] if module.own_var is None else [(module.own_var, 1.0)]
        parts = [*own, (module.alias_modules, teacher_lr)]
    groups = [
        group | {"lr_sc": factor}
        for part, factor in parts
        for group in recipe.weight_decay_groups(part.named_parameters())
    ]
    return torch.optim.AdamW(groups, betas=recipe.BETAS, fused=True)
