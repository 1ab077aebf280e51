"""Sizes of the teacher, and which alias tokens each scale sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

MASKS = ("causal", "privileged")
VALUES = ("centred", "whole")
HEAD = 64  # channels of an attention head, as in VAR


@dataclass(frozen=True)
class TeacherGeometry:
    """Determines a teacher's shapes and which alias tokens its queries see; stored with the weights.

    Args:
        width: C of the VAR.
        code_dim: Ca of the alias tokenizer.
        grids: cells along one side of each alias state, blurriest first.
        patch_nums: token map sizes of the VAR.
        states: g(i), the focus state that serves each scale.
        blocks: M, how many of the last blocks run twice.
        mask: "causal": scale i sees the alias tokens of states <= g(i-1); "privileged": <= g(i).
        alias_scales: number of last scales that see alias tokens; None: all that the mask allows.
        values: of the cross-attention: "centred", the alias embeddings minus their mean over images, or "whole", as printed.

    Raises:
        ValueError: a value outside these limits.

    >>> TeacherGeometry(width=1024).visible_states
    (0, 1, 1, 2, 2, 3, 3, 3, 3, 3)
    """

    width: int
    code_dim: int = 32
    grids: tuple[int, ...] = (4, 8, 16)
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    states: tuple[int, ...] = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)
    blocks: int = 2
    mask: str = "causal"
    alias_scales: int | None = None
    values: str = "centred"

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ValueError(f"the teacher's inner width is half the VAR's: width {self.width} must be even")
        if self.blocks < 1:
            raise ValueError(f"{self.blocks} teacher blocks; at least 1 block must run twice")
        if self.mask not in MASKS:
            raise ValueError(f"unknown alias mask {self.mask!r}; choose one of {', '.join(MASKS)}")
        if self.values not in VALUES:
            raise ValueError(f"unknown alias values {self.values!r}; choose one of {', '.join(VALUES)}")
        if not self.grids or min(self.grids) < 1:
            raise ValueError(f"alias grids {self.grids} must be one or more whole numbers of at least 1")
        if len(self.states) != len(self.patch_nums):
            raise ValueError(f"{len(self.states)} states were given for {len(self.patch_nums)} token scales")
        if list(self.states) != sorted(self.states) or not 0 <= self.states[0] <= self.states[-1] <= len(self.grids):
            raise ValueError(f"states {self.states} of the scales must rise within 0 .. {len(self.grids)}")
        if self.alias_scales is not None and not 1 <= self.alias_scales <= len(self.patch_nums):
            raise ValueError(f"alias_scales {self.alias_scales} is not within 1 .. {len(self.patch_nums)} token scales")

    @property
    def tokens(self) -> tuple[int, ...]:
        """l_k, alias tokens of each state."""
        return tuple(grid * grid for grid in self.grids)

    @property
    def inner(self) -> int:
        """d_h = C / 2."""
        return self.width // 2

    @property
    def heads(self) -> int:
        """d_h / 64 (at least 1; where that does not divide d_h, the next smaller number that does)."""
        most = max(1, self.inner // HEAD)
        return next(heads for heads in range(most, 0, -1) if self.inner % heads == 0)

    @property
    def visible_states(self) -> tuple[int, ...]:
        """For each scale, the number of alias states, from the blurriest on, that its queries see."""
        ends = [min(state + 1, len(self.grids)) for state in self.states]
        counts = ends if self.mask == "privileged" else [0, *ends[:-1]]
        first = len(counts) - (self.alias_scales or len(counts))
        return tuple(count if i >= first else 0 for i, count in enumerate(counts))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for a checkpoint; `TeacherGeometry.from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TeacherGeometry:
        """The geometry that `to_dict` described, also after conversion to and from JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)


def alias_visibility(geometry: TeacherGeometry) -> Tensor:
    """(L,T) bool: whether a query may see an alias token (without the null slot, which all see).

    >>> alias_visibility(TeacherGeometry(64, grids=(1, 2), patch_nums=(1, 2, 4), states=(0, 1, 2)))[[0, 1, 5]].int()
    tensor([[0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    state_T = torch.arange(len(geometry.grids)).repeat_interleave(torch.tensor(geometry.tokens))
    lengths = torch.tensor([pn * pn for pn in geometry.patch_nums])
    count_L = torch.tensor(geometry.visible_states).repeat_interleave(lengths)
    return state_T[None, :] < count_L[:, None]
