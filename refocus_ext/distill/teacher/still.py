"""Teachers whose VAR no gradient trains: the frozen one here, the averaged one in `ema.py`.

Shapes as in `refocus_ext.distill.teacher.shared_weights`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patches.protocols import VAR, as_module
from patches.teacher_block import StudentPass
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead, TeacherPass, TeacherSettings
from refocus_ext.distill.teacher.separate import crossed_pass
from refocus_ext.distill.teacher.shared_weights import Teacher, record
from refocus_ext.engine.devices import kind_of, rewound
from refocus_ext.storage.weights import load_strictly, read_state_dict


class StillTeacher(AliasTeacher):
    """A VAR of its own without gradient, which always sees the true label and drops nothing, and AG-XAttn in its last blocks.

    The student, whose labels are dropped as ever, learns from the better prediction. The pass takes no random numbers.

    Args:
        var: a VAR built like the student; it becomes part of this module.
        aliases: the alias modules, None for a teacher that reads no alias tokens.
    """

    counted = True
    keeps_random_numbers = True  # off where there is nothing to compute and perhaps no device: on fake tensors

    def __init__(self, geometry: TeacherGeometry, var: VAR, aliases: Teacher | None) -> None:
        super().__init__()
        self.geometry = geometry
        self.var, self.aliases = var, aliases
        as_module(var).requires_grad_(False)
        var.cond_drop_rate = 0.0
        self.train()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        as_module(self.var).eval()
        return self

    @property
    def alias_modules(self) -> Teacher | None:
        return self.aliases

    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        tape = record(var, label_B, x_BLCv_wo_first_l, self.geometry.blocks, defer_head=True)
        return tape, self.taught_again(var, tape, label_B, x_BLCv_wo_first_l, alias_K)

    def taught_again(
        self, var: VAR, tape: StudentPass, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> TeacherPass:
        with self._undisturbed(x_BLCv_wo_first_l.device):
            features, cond_BD = self.teach(label_B, x_BLCv_wo_first_l, alias_K)
        return TeacherPass(features, lambda h_bLC, images: self.var.get_logits(h_bLC, cond_BD[images]))

    def teach(
        self, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Features of the last M blocks, M times (B,L,C), and the condition of the head (B,C)."""
        if self.aliases is not None:
            return crossed_pass(self.var, self.aliases, label_B, x_BLCv_wo_first_l, alias_K)
        tape = record(self.var, label_B, x_BLCv_wo_first_l, self.geometry.blocks, defer_head=True)
        assert tape.cond_BD is not None
        return [block.out_BLC for block in tape.blocks], tape.cond_BD

    def _undisturbed(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """VAR draws its label drop at rate 0 too; the student's next numbers must not depend on that."""
        if not self.keeps_random_numbers:
            return contextlib.nullcontext()
        return rewound(kind_of(device).random_state(device), device)


class FrozenTeacher(StillTeacher):
    """The teacher that another run has trained (`source.py`), which nothing changes here."""

    saved = False

    @classmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    ) -> FrozenTeacher:
        teacher = cls(geometry, build_var(), Teacher(geometry) if settings.aliases else None)
        if settings.weights is not None:
            state = read_state_dict(settings.weights, "restore it, or train that run again")
            load_strictly(teacher, state, f"{settings.weights} does not fit the run's configuration ({{reason}}).")
        teacher.requires_grad_(False)
        return teacher

    @property
    def alias_embedding(self) -> AliasEmbedding | None:
        return None

    @classmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        return 0

    @classmethod
    def parameters_still(cls, counts: TeacherOverhead) -> int:
        return counts.var_parameters + counts.teacher_parameters

    @classmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        return counts.kind_flops

    @classmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        return f"a second VAR that is not trained, +{100 * counts.kind_share:.1f}% FLOPs"
