"""The teacher: the student's own VAR weights, with alias-gate cross-attention (AG-XAttn) in its last M blocks.

Shapes: B batch, L structure tokens in S scales, T alias tokens in K-1 states (l_k = grid_k^2 each), C width of the VAR,
Ca length of an alias code vector, H heads of c channels, d_h = H c inner width, V codes. Focus states are indexed from
0, blurriest first; the sharp state K-1 has no alias tokens. `_K` lists have K-1 entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patches.instance import patched
from patches.model_parts import blocks_of
from patches.protocols import VAR
from patches.teacher_block import Recording, StudentPass, attention_half, detached_call, detached_logits, ffn_half
from patches.upstream import pristine_initializers
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding, AliasGateCrossAttention
from refocus_ext.distill.teacher.geometry import TeacherGeometry, alias_visibility
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead, TeacherPass, TeacherSettings


class TeacherOutput(NamedTuple):
    """Both passes of one step; student entries have gradient for the VAR only, teacher entries for the teacher only."""

    student_logits: Tensor  # (B,L,V), fp32
    teacher_logits: Tensor  # (B,L,V), fp32
    student_features: list[Tensor]  # M times (B,L,C), outputs of the last M blocks
    teacher_features: list[Tensor]


def record(
    var: VAR,
    label_B: Tensor,
    x_BLCv_wo_first_l: Tensor,
    blocks: int,
    defer_head: bool = False,
) -> StudentPass:
    """VAR's own teacher-forced pass, with the inputs of its last `blocks` blocks (0: none) and of its head."""
    tape = StudentPass(defer_head=defer_head)
    with patched(var, Recording(blocks, tape)):
        logits_BLV = var(label_B, x_BLCv_wo_first_l)
    tape.logits_BLV = None if defer_head else logits_BLV
    return tape


class Teacher(AliasTeacher):
    """AG-XAttn modules and E_a; the VAR is passed to each call and is not part of the state dict.

    `forward` is `observe` (the student's pass: VAR's own forward, with the same bits and random numbers) followed by `teach` and
    `logits`. To use one student pass with several alias inputs, or to chunk the logits, call the three separately.
    """

    needs_aliases = "the teacher is then the student itself"

    visible_LN: Tensor

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        with pristine_initializers():
            self.embed = AliasEmbedding(geometry)
            self.cross = nn.ModuleList(AliasGateCrossAttention(geometry) for _ in range(geometry.blocks))
        visible_LT = alias_visibility(geometry)
        null_L1 = torch.ones(len(visible_LT), 1, dtype=torch.bool)
        self.register_buffer("visible_LN", torch.cat((null_L1, visible_LT), dim=1), persistent=False)

    @classmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    ) -> Teacher:
        torch.manual_seed(seed)
        return cls(geometry)

    @property
    def alias_modules(self) -> Teacher:
        return self

    @property
    def alias_embedding(self) -> AliasEmbedding:
        return self.embed

    @classmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        return counts.teacher_parameters

    @classmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        return counts.both_flops

    @classmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        return f"+{100 * counts.parameters:.1f}% parameters, +{100 * counts.flops:.1f}% FLOPs"

    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        tape = self.observe(var, label_B, x_BLCv_wo_first_l, defer_head=True)
        return tape, self.taught_again(var, tape, label_B, x_BLCv_wo_first_l, alias_K)

    def taught_again(
        self, var: VAR, tape: StudentPass, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> TeacherPass:
        return TeacherPass(self.teach(var, tape, alias_K), lambda h_bLC, images: self.logits(var, tape, h_bLC, images))

    def observe(
        self,
        var: VAR,
        label_B: Tensor,
        x_BLCv_wo_first_l: Tensor,
        defer_head: bool = False,
    ) -> StudentPass:
        """Runs the student and records the part that the teacher's pass shares.

        Args:
            var: the VAR, unwrapped.
            label_B: class labels (B,).
            x_BLCv_wo_first_l: teacher-forcing input (B, L - first_l, Cvae).
            defer_head: do not compute logits; the caller gets them from `var.get_logits(hidden, cond)` of the pass.
        """
        if tuple(var.patch_nums) != self.geometry.patch_nums or self.geometry.width != var.C or var.prog_si >= 0:
            raise ValueError(
                f"this teacher is for a VAR of width {self.geometry.width} and patch_nums {self.geometry.patch_nums} without "
                f"progressive training; got width {var.C}, {tuple(var.patch_nums)}, prog_si {var.prog_si}"
            )
        return record(var, label_B, x_BLCv_wo_first_l, self.geometry.blocks, defer_head)

    def teach(self, var: VAR, tape: StudentPass, alias_K: Sequence[Tensor]) -> list[Tensor]:
        """Features of the teacher's pass through the last M blocks, M times (B,L,C).

        Args:
            alias_K: code vectors of the alias tokens, K-1 times (B,l_k,Ca).
        """
        aliases = self.embed(alias_K)
        x_BLC = tape.blocks[0].mid_BLC  # the first doubled block shares the student's self-attention
        features: list[Tensor] = []
        for block, cross, record in zip(blocks_of(var)[-len(self.cross) :], self.cross, tape.blocks, strict=True):
            if features:
                x_BLC = detached_call(attention_half, block, x_BLC, record.six, tape.attn_bias, record.drop_attn)
            x_BLC = cross(x_BLC, aliases, self.visible_LN)
            x_BLC = detached_call(ffn_half, block, x_BLC, record.six, record.drop_ffn)
            features.append(x_BLC)
        return features

    def logits(self, var: VAR, tape: StudentPass, feature_BLC: Tensor, images: slice = slice(None)) -> Tensor:
        """Logits (B,L,V), fp32, of the last features of `teach`, or of those of some images."""
        assert tape.cond_BD is not None, "the tape has no finished pass"
        return detached_logits(var, feature_BLC.float(), tape.cond_BD.detach()[images])

    def forward(
        self,
        var: VAR,
        label_B: Tensor,
        x_BLCv_wo_first_l: Tensor,
        alias_K: Sequence[Tensor],
    ) -> TeacherOutput:
        """Student and teacher on one batch; see `observe` and `teach` for the arguments."""
        tape = self.observe(var, label_B, x_BLCv_wo_first_l)
        features = self.teach(var, tape, alias_K)
        assert tape.logits_BLV is not None
        student = [record.out_BLC for record in tape.blocks]
        return TeacherOutput(tape.logits_BLV, self.logits(var, tape, features[-1]), student, features)
