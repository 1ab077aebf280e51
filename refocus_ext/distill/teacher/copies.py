"""The teacher as trained copies of the student's last M blocks, with AG-XAttn in them.

Shapes as in `refocus_ext.distill.teacher.shared_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patches.model_parts import blocks_of
from patches.protocols import VAR
from patches.teacher_block import StudentPass, attention_half, ffn_half, modulation
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead, TeacherPass, TeacherSettings
from refocus_ext.distill.teacher.shared_weights import Teacher


class CopiesTeacher(AliasTeacher):
    """Starts as the student and is trained by its own cross-entropy alone, on the student's detached features before block D-M.

    The head is the student's, detached, and not a copy: a copy would add V C parameters, and the features that the student
    is compared with would be those of another head.

    Args:
        blocks: M blocks with the student's first weights; they become part of this module.
    """

    needs_aliases = "the copies then start as the student's blocks and learn what they learn"
    counted = True

    def __init__(self, geometry: TeacherGeometry, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.geometry = geometry
        self.blocks, self.aliases = nn.ModuleList(blocks), Teacher(geometry)

    @classmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    ) -> CopiesTeacher:
        blocks = blocks_of(build_var())[-geometry.blocks :]
        torch.manual_seed(seed)
        return cls(geometry, blocks)

    @property
    def alias_modules(self) -> Teacher:
        return self.aliases

    @property
    def alias_embedding(self) -> AliasEmbedding:
        return self.aliases.embed

    @property
    def own_network(self) -> nn.Module:
        return self.blocks

    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        tape = self.aliases.observe(var, label_B, x_BLCv_wo_first_l, defer_head=True)
        return tape, self.taught_again(var, tape, label_B, x_BLCv_wo_first_l, alias_K)

    def taught_again(
        self, var: VAR, tape: StudentPass, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> TeacherPass:
        features = self.teach(tape, alias_K)
        return TeacherPass(features, lambda h_bLC, images: self.aliases.logits(var, tape, h_bLC, images))

    def teach(self, tape: StudentPass, alias_K: Sequence[Tensor]) -> list[Tensor]:
        """Features of the copies, M times (B,L,C); they drop the branches that the student's blocks dropped.

        Args:
            alias_K: code vectors of the alias tokens, K-1 times (B,l_k,Ca).
        """
        aliases, x_BLC = self.aliases.embed(alias_K), tape.blocks[0].in_BLC
        features: list[Tensor] = []
        for block, cross, record in zip(self.blocks, self.aliases.cross, tape.blocks, strict=True):
            six = modulation(block, record.cond)
            x_BLC = attention_half(block, x_BLC, six, tape.attn_bias, record.drop_attn)
            x_BLC = ffn_half(block, cross(x_BLC, aliases, self.aliases.visible_LN), six, record.drop_ffn)
            features.append(x_BLC)
        return features

    @classmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        return counts.teacher_parameters + counts.block_parameters

    @classmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        return counts.kind_flops

    @classmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        share = cls.parameters_added(counts) / counts.var_parameters
        return f"+{100 * share:.1f}% parameters, +{100 * counts.kind_share:.1f}% FLOPs"
