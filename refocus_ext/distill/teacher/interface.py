"""What stage 2 asks of a teacher. A new kind derives from `AliasTeacher` and has its entry in `kinds.py`.

Shapes: B batch, L structure tokens, l some of them, C width, V codes. `_K` lists have K-1 entries, one an alias state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from patches.faces import VAR
from patches.teacher_block import StudentPass
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry


class TeacherPass(NamedTuple):
    """Features of the last M blocks (B,L,C), and the head that turns the last of them into logits (B,l,V)."""

    features: list[Tensor]
    head: Callable[[Tensor], Tensor]


class TeacherOverhead(NamedTuple):
    """Counts for one image; a multiply-add is two FLOPs, a step is forward and backward of every loss."""

    var_parameters: int
    teacher_parameters: int  # of the alias modules
    var_flops: int  # of a vanilla training step
    both_flops: int  # of student and shared-weights teacher

    @property
    def flops(self) -> float:
        """Share that the shared-weights teacher adds to a vanilla step: 0.1 is 10% more."""
        return self.both_flops / self.var_flops - 1

    @property
    def parameters(self) -> float:
        """Share that the alias modules add to the VAR's parameters."""
        return self.teacher_parameters / self.var_parameters


class AliasTeacher(nn.Module):
    """A network that reads alias tokens and whose features and logits the student learns from (eq. 9-13).

    Its own cross-entropy trains its parameters and never the student's.
    """

    geometry: TeacherGeometry

    @classmethod
    @abstractmethod
    def build(cls, geometry: TeacherGeometry, build_var: Callable[[], Any], seed: int) -> AliasTeacher:
        """A new teacher whose alias modules are drawn from `seed`.

        Args:
            build_var: makes a VAR like the student, for a teacher that has one of its own.
        """

    @abstractmethod
    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        """The student's pass, with VAR's own bits and random numbers, and the teacher's, both up to their heads.

        Args:
            var: the student, a VAR.
            label_B: class labels (B,).
            x_BLCv_wo_first_l: teacher-forcing input (B, L - first_l, Cvae).
            alias_K: code vectors of the alias tokens, K-1 times (B,l_k,Ca).
        """

    @abstractmethod
    def taught_again(
        self, var: VAR, tape: StudentPass, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> TeacherPass:
        """The teacher's pass with other alias tokens, beside the student's pass `tape` that is there already."""

    @property
    @abstractmethod
    def alias_modules(self) -> nn.Module:
        """What reads alias tokens; it learns at the alias gates' rate."""

    @property
    @abstractmethod
    def alias_embedding(self) -> AliasEmbedding:
        """E_a, whose running mean the training loop moves (`AliasEmbedding.follow`)."""

    @property
    def own_var(self) -> Any | None:
        """A VAR of its own; None where it works with the student's weights."""
        return None

    @classmethod
    @abstractmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        """Parameters that are trained beside the student's."""

    @classmethod
    @abstractmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        """Of a training step, the student's included."""

    @classmethod
    @abstractmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        """What it adds, for the plan: '+1.1% parameters, +5.8% FLOPs'."""
