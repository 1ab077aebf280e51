"""The teacher as the student's exponential average, with alias-gate cross-attention that is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patches.protocols import VAR, as_module
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import TeacherOverhead, TeacherSettings
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.distill.teacher.still import StillTeacher
from refocus_ext.tokenizer.averages import decay_at


class EmaTeacher(StillTeacher):
    """The average starts as a copy of the student. The teacher's cross-entropy trains AG-XAttn and E_a through the averaged blocks,
    which it leaves as they are; without alias tokens nothing is trained, and this is self-distillation.

    Args:
        decay: of the average, see `follow`.
    """

    def __init__(self, geometry: TeacherGeometry, var: VAR, aliases: Teacher | None, decay: float) -> None:
        super().__init__(geometry, var, aliases)
        self.decay = decay

    @classmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    ) -> EmaTeacher:
        var = build_var()
        torch.manual_seed(seed)
        return cls(geometry, var, Teacher(geometry) if settings.aliases else None, settings.decay)

    @property
    def alias_embedding(self) -> AliasEmbedding | None:
        return None if self.aliases is None else self.aliases.embed

    @torch.no_grad()
    def follow(self, var: VAR, step: int, skipped: Tensor) -> None:
        """average <- d average + (1 - d) student, d = min(decay, (1 + t) / (10 + t)) in step t, counted from 1.

        The weight is a tensor: whether a step is skipped is known on the device alone.
        """
        weight = torch.where(skipped, 0.0, 1.0 - decay_at(step + 1, self.decay))
        pairs = zip(as_module(self.var).parameters(), as_module(var).parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, weight.to(average.dtype))

    @classmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        return counts.teacher_parameters

    @classmethod
    def parameters_still(cls, counts: TeacherOverhead) -> int:
        return counts.var_parameters

    @classmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        return counts.kind_flops

    @classmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        gates = f"+{100 * counts.parameters:.1f}% parameters and " if counts.teacher_parameters else ""
        return f"{gates}an averaged VAR that no optimizer holds, +{100 * counts.kind_share:.1f}% FLOPs"
