"""The interface of a teacher. A new kind derives from `AliasTeacher` and is registered in `kinds.py`.

Shapes: B batch, L structure tokens, C width, V codes. `_K` lists have K-1 entries, one per alias state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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


@dataclass(frozen=True)
class TeacherSettings:
    """What a kind of teacher is made with besides its geometry.

    Args:
        aliases: whether it reads alias tokens; without them no AG-XAttn is built.
        decay: of an averaged VAR.
        weights: the file of a frozen teacher's weights; None leaves them as they are built.
    """

    aliases: bool = True
    decay: float = 0.999
    weights: Path | None = None


class TeacherOverhead(NamedTuple):
    """Counts for one image; a multiply-add is two FLOPs, a step is the forward and backward pass of every loss."""

    var_parameters: int
    teacher_parameters: int  # of the alias modules
    var_flops: int  # of a vanilla training step
    both_flops: int  # of student and shared-weights teacher
    block_parameters: int = 0  # of the VAR's last M blocks
    kind_flops: int = 0  # of student and teacher, for the kinds that are counted as they are (`AliasTeacher.counted`)

    @property
    def flops(self) -> float:
        """Share that the shared-weights teacher adds to a vanilla step: 0.1 is 10% more."""
        return self.both_flops / self.var_flops - 1

    @property
    def parameters(self) -> float:
        """Share that the alias modules add to the VAR's parameters."""
        return self.teacher_parameters / self.var_parameters

    @property
    def kind_share(self) -> float:
        """Share that a counted kind adds to the FLOPs of a vanilla step."""
        return self.kind_flops / self.var_flops - 1


class AliasTeacher(nn.Module):
    """A network that reads alias tokens; the student learns from its features and logits (eq. 9-13).

    Its own cross-entropy trains only its own parameters, those that require a gradient.
    """

    geometry: TeacherGeometry
    needs_aliases: ClassVar[str] = ""  # a clause on why this kind is none without alias tokens; "": it is one
    counted: ClassVar[bool] = False  # whether its passes run to be counted, in place of `Teacher`'s
    saved: ClassVar[bool] = True  # whether its weights are part of a run, and not those of another one

    @classmethod
    @abstractmethod
    def build(
        cls,
        geometry: TeacherGeometry,
        build_var: Callable[[], Any],
        seed: int,
        settings: TeacherSettings = TeacherSettings(),
    ) -> AliasTeacher:
        """A new teacher whose alias modules are drawn from `seed`.

        Args:
            build_var: makes a VAR like the student, with its first weights, for a teacher with weights of its own.
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
    def alias_modules(self) -> nn.Module | None:
        """The module that reads alias tokens, None if there is none; it learns at the alias gates' rate."""

    @property
    @abstractmethod
    def alias_embedding(self) -> AliasEmbedding | None:
        """E_a, whose running mean the training loop updates (`AliasEmbedding.follow`); None if there is none to update."""

    @property
    def own_var(self) -> Any | None:
        """The teacher's own VAR, if its labels are dropped as the student's are."""
        return None

    @property
    def own_network(self) -> nn.Module | None:
        """What its cross-entropy trains besides the alias modules, at the student's rate."""
        return self.own_var

    @property
    def reads_aliases(self) -> bool:
        return self.alias_modules is not None

    @property
    def learns(self) -> bool:
        """Whether its own cross-entropy trains anything."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def follow(self, var: VAR, step: int, skipped: Tensor) -> None:
        """Called on every process after each optimizer step of the student `var`.

        Args:
            step: its number, from 0.
            skipped: a bool tensor (): whether the step left all weights as they were.
        """

    @classmethod
    @abstractmethod
    def parameters_added(cls, counts: TeacherOverhead) -> int:
        """Parameters trained in addition to the student's."""

    @classmethod
    def parameters_still(cls, counts: TeacherOverhead) -> int:
        """Parameters without gradient and moments."""
        return 0

    @classmethod
    @abstractmethod
    def step_flops(cls, counts: TeacherOverhead) -> int:
        """FLOPs of a training step, including the student's."""

    @classmethod
    @abstractmethod
    def cost_in_words(cls, counts: TeacherOverhead) -> str:
        """The added cost, for the plan: '+1.1% parameters, +5.8% FLOPs'."""
