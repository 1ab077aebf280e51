"""The teacher as a second full VAR with AG-XAttn in its last M blocks: the costly reading of the paper, for comparison.

Shapes as in `refocus_ext.teacher`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patches.instance import patched
from patches.teacher_block import Crossing
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.shared_weights import Teacher, record


class SeparateTeacher(nn.Module):
    """A VAR of its own around the alias modules of `Teacher`; it starts as a copy of the student.

    Its loss trains all of it and never the student. It repeats the student's random numbers, so that label drop and
    stochastic depth are shared by both.

    Args:
        var: a VAR built like the student; it becomes part of this module.
    """

    def __init__(self, geometry: TeacherGeometry, var: Any) -> None:
        super().__init__()
        self.var, self.aliases = var, Teacher(geometry)

    @property
    def geometry(self) -> TeacherGeometry:
        return self.aliases.geometry

    def teach(
        self, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor], random_state: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Features of the last M blocks, M times (B,L,C), and the condition of the head (B,C).

        Args:
            random_state: `random_state()` from before the student's pass.
        """
        aliases = self.aliases.embed(alias_K)
        visible_LN = self.aliases.visible_LN
        crosses = [partial(cross, aliases=aliases, visible_LN=visible_LN) for cross in self.aliases.cross]
        features: list[Tensor] = []
        with rewound(random_state, x_BLCv_wo_first_l.device), patched(self.var, Crossing(crosses, features)):
            tape = record(self.var, label_B, x_BLCv_wo_first_l, blocks=0, defer_head=True)
        assert tape.cond_BD is not None
        return features, tape.cond_BD

    def logits(self, cond_BD: Tensor, feature_BlC: Tensor) -> Tensor:
        """(B,l,V), fp32."""
        return self.var.get_logits(feature_BlC, cond_BD)


def random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that a pass on `device` draws from: the CPU's and, if it is one, the GPU's."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


@contextmanager
def rewound(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Inside, random numbers are those that followed `state`; afterwards, those that would have come."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
