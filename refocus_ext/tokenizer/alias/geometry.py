"""Sizes of the alias tokenizer, and the number of tokens that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refocus_ext.optics.pyramid import FocusPyramid

STRIDES = (4, 8, 16)
CODEBOOKS = ("own", "shared")
GROUPS = 8  # of the normalization


@dataclass(frozen=True)
class AliasGeometry:
    """The sizes that determine an alias tokenizer's shapes; stored with the weights.

    Args:
        image_size: H of the sharp image, pixels.
        states: K, focus states of the pyramid, of which K-1 have an alias view.
        stride: pixels of the alias view per token cell: 4, 8 or 16.
        codes: codebook size.
        code_dim: C, length of a code vector.
        width: channels at half the stride; twice as many at the stride.
        codebook: "own", or "shared": the structure codebook is used for both (code_dim must then be that of that codebook, and
            codes must divide its size: the alias tokens have every V / codes'th entry).

    Raises:
        ValueError: a value outside these limits, or a stride that leaves a state without a whole number of cells.

    >>> AliasGeometry().grids, AliasGeometry().tokens
    ((4, 8, 16), 336)
    """

    image_size: int = 256
    states: int = 4
    stride: int = 8
    codes: int = 512
    code_dim: int = 32
    width: int = 64
    codebook: str = "own"

    def __post_init__(self) -> None:
        self._check_numbers()
        for k, view in enumerate(self.view_sizes):
            if view % self.stride:
                raise ValueError(
                    f"alias stride {self.stride} does not divide the {view:g} px alias view of focus state {k + 1} "
                    f"(image_size {self.image_size}, {self.states} states); {self._remedy()}"
                )

    def _check_numbers(self) -> None:
        for name, least in (
            ("image_size", 1),
            ("states", 2),
            ("stride", 1),
            ("codes", 2),
            ("code_dim", 1),
            ("width", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} of an alias tokenizer must be a whole number of at least {least}, got {value!r}"
                )
        if self.stride not in STRIDES:
            raise ValueError(f"alias stride {self.stride} is not one of {', '.join(map(str, STRIDES))}")
        if self.width % GROUPS:
            raise ValueError(f"width {self.width} is not a multiple of {GROUPS}, the groups of the normalization")
        if self.code_dim > self.patch_dim:
            raise ValueError(
                f"code_dim {self.code_dim} is more than the {self.patch_dim} values of a {self.stride} x {self.stride} "
                "patch; use a smaller code_dim or a larger stride"
            )
        if self.codebook not in CODEBOOKS:
            raise ValueError(f"unknown alias codebook {self.codebook!r}; choose one of {', '.join(CODEBOOKS)}")

    def _remedy(self) -> str:
        fitting = [str(s) for s in STRIDES if all(view % s == 0 for view in self.view_sizes)]
        return f"use stride {' or '.join(fitting)}" if fitting else "use fewer states or a larger image_size"

    @property
    def alias_states(self) -> int:
        """K-1."""
        return self.states - 1

    @property
    def patch_dim(self) -> int:
        """Values of one stride x stride RGB patch."""
        return 3 * self.stride**2

    @property
    def view_sizes(self) -> tuple[float, ...]:
        """H_k, pixels; whole for every legal geometry."""
        sizes = (self.image_size / 2 ** (self.states - 1 - k) for k in range(self.alias_states))
        return tuple(int(size) if size.is_integer() else size for size in sizes)

    @property
    def grids(self) -> tuple[int, ...]:
        """Token cells along one side of each alias state."""
        return tuple(int(size) // self.stride for size in self.view_sizes)

    @property
    def tokens(self) -> int:
        """Alias tokens of an image, all states together."""
        return sum(grid * grid for grid in self.grids)

    @classmethod
    def of(cls, pyramid: FocusPyramid, **fields: Any) -> AliasGeometry:
        """The geometry for a pyramid's alias views."""
        return cls(image_size=pyramid.image_size, states=pyramid.states, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for a checkpoint; `from_dict` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AliasGeometry:
        """The geometry that `to_dict` described; absent fields take their defaults.

        Raises:
            ValueError: an unknown key, or a value outside its limits.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"unknown alias fields {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**fields)
