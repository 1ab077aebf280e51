"""The teacher as a second full VAR with AG-XAttn in its last M blocks: the expensive reading of the paper, for comparison.

Shapes as in `refocus_ext.distill.teacher.shared_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patches.instance import patched
from patches.protocols import VAR
from patches.teacher_block import Crossing, StudentPass
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead, TeacherPass, TeacherSettings
from refocus_ext.distill.teacher.shared_weights import Teacher, record
from refocus_ext.engine.devices import kind_of, rewound


class SeparateTeacher(AliasTeacher):
    """A separate VAR around the alias modules of `Teacher`; it starts as a copy of the student.

    Its loss trains the whole teacher and never the student. It reuses the student's random numbers, so that label drop
    and stochastic depth are the same for both.

    Args:
        var: a VAR built like the student; it becomes part of this module.
    """

    needs_aliases = "the second VAR then starts as the student and learns what it learns"

    def __init__(self, geometry: TeacherGeometry, var: VAR) -> None:
        super().__init__()
        self.geometry = geometry
        self.var, self.aliases = var, Teacher(geometry)

    @classmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    ) -> SeparateTeacher:
        own = build_var()
        torch.manual_seed(seed)
        return cls(geometry, own)

    @property
    def alias_embedding(self) -> AliasEmbedding:
        return self.aliases.embed

    @property
    def alias_modules(self) -> Teacher:
        return self.aliases

    @property
    def own_var(self) -> Any:
        return self.var

    @classmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        return counts.teacher_parameters + counts.var_parameters

    @classmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        return 2 * counts.var_flops

    @classmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        return f"+{100 * counts.parameters:.1f}% parameters and a second VAR"

    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        device = x_BLCv_wo_first_l.device
        state = kind_of(device).random_state(device)
        tape = self.aliases.observe(var, label_B, x_BLCv_wo_first_l, defer_head=True)
        return tape, self._pass(label_B, x_BLCv_wo_first_l, alias_K, state)

    def taught_again(
        self, var: VAR, tape: StudentPass, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> TeacherPass:
        return self.passes(var, label_B, x_BLCv_wo_first_l, alias_K)[1]

    def _pass(
        self, label_B: Tensor, x_BLC: Tensor, alias_K: Sequence[Tensor], random_state: list[Tensor]
    ) -> TeacherPass:
        features, cond_BD = self.teach(label_B, x_BLC, alias_K, random_state)
        return TeacherPass(features, lambda h_bLC, images: self.logits(cond_BD[images], h_bLC))

    def teach(
        self, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor], random_state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Features of the last M blocks, M times (B,L,C), and the condition of the head (B,C).

        Args:
            random_state: `DeviceKind.random_state` from before the student's pass.
        """
        with rewound(random_state, x_BLCv_wo_first_l.device):
            return crossed_pass(self.var, self.aliases, label_B, x_BLCv_wo_first_l, alias_K)

    def logits(self, cond_BD: Tensor, feature_BLC: Tensor) -> Tensor:
        """(B,L,V), fp32."""
        return self.var.get_logits(feature_BLC, cond_BD)


def crossed_pass(
    var: VAR, aliases: Teacher, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The pass of a VAR with AG-XAttn in its last M blocks: their outputs (B,L,C), and the condition of the head (B,C)."""
    embedded = aliases.embed(alias_K)
    crosses = [partial(cross, aliases=embedded, visible_LN=aliases.visible_LN) for cross in aliases.cross]
    features: list[Tensor] = []
    with patched(var, Crossing(crosses, features)):
        tape = record(var, label_B, x_BLCv_wo_first_l, blocks=0, defer_head=True)
    assert tape.cond_BD is not None
    return features, tape.cond_BD
