"""The interface of a teacher. A new kind derives from `AliasTeacher` and is registered in `kinds.py`.

Shapes: B batch, L structure tokens, C width, V codes. `_K` lists have K-1 entries, one per alias state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from patches.protocols import VAR
from patches.teacher_block import StudentPass
from refocus_ext.distill.losses import Head
from refocus_ext.distill.teacher.alias_gate import AliasEmbedding
from refocus_ext.distill.teacher.geometry import TeacherGeometry


class TeacherPass(NamedTuple):
    """Features of the last M blocks (B,L,C), and the head that turns the last of them into logits."""

    features: list[Tensor]
    head: Head


class TeacherOverhead(NamedTuple):
    """Counts for one image; a multiply-add is two FLOPs, a step is the forward and backward pass of every loss."""

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
    """A network that reads alias tokens; the student learns from its features and logits (eq. 9-13).

    Its own cross-entropy trains only its own parameters.
    """

    geometry: TeacherGeometry

    @classmethod
    @abstractmethod
    def build(cls, geometry: TeacherGeometry, build_var: Callable[[], Any], seed: int) -> AliasTeacher:
        """A new teacher whose alias modules are drawn from `seed`.

        Args:
            build_var: makes a VAR like the student, for a teacher with its own VAR.
        """

    @abstractmethod
    def passes(
        self, var: VAR, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass]:
        """The student's pass, bit-identical to VAR's and with the same random numbers, and the teacher's, both up to their heads.

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
        """The teacher's pass with other alias tokens, for an existing student's pass `tape`."""

    @property
    @abstractmethod
    def alias_modules(self) -> nn.Module:
        """The module that reads alias tokens; it learns at the alias gates' rate."""

    @property
    @abstractmethod
    def alias_embedding(self) -> AliasEmbedding:
        """E_a, whose running mean the training loop updates (`AliasEmbedding.follow`)."""

    @property
    def own_var(self) -> Any | None:
        """The teacher's own VAR; None if it uses the student's weights."""
        return None

    @classmethod
    @abstractmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        """Parameters trained in addition to the student's."""

    @classmethod
    @abstractmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        """FLOPs of a training step, including the student's."""

    @classmethod
    @abstractmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        """The added cost, for the plan: '+1.1% parameters, +5.8% FLOPs'."""
