"""What the GPU report measures, as data: the sizes and the cases, in order of importance.

There are two plans of the same cases: `PAPER` for a GPU, and `REHEARSAL`, whose sizes take a CPU seconds and mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from refocus_ext.evidence.bench.gpu_report.turns import Pace
from refocus_ext.options.presets import VAR_PATCH_NUMS


@dataclass(frozen=True)
class Geometry:
    """Sizes of images and tokenizers that all cases share.

    Args:
        image_size, rho_max: pixels.
        patch_nums: side of each token map.
        codes: V.
        ch: base width of the VQVAE.
        states: K.
    """

    image_size: int = 256
    patch_nums: tuple[int, ...] = VAR_PATCH_NUMS
    codes: int = 8192
    ch: int = 160
    states: int = 4
    rho_max: float = 12.0


@dataclass(frozen=True)
class Case:
    """Parts that are compared with each other.

    Args:
        kind: a key of `builders.BUILDERS`.
        needs: seconds within which it is built and measured; it is left out where fewer are left.
        sizes: arguments of its builder.
        cuda: whether it is measured on CUDA only: a CPU has no CUDA graphs, and may have no compiler for torch.compile.
    """

    kind: str
    needs: float
    sizes: dict[str, int] = field(default_factory=dict)
    cuda: bool = False

    @property
    def name(self) -> str:
        """'step d16 batch 32'."""
        words = (f"d{value}" if size == "depth" else f"{size} {value}" for size, value in self.sizes.items())
        return " ".join((self.kind, *words))


@dataclass(frozen=True)
class Plan:
    """A list of cases at some geometry."""

    geometry: Geometry
    cases: tuple[Case, ...]
    pace: Pace = field(default_factory=Pace)
    meant: bool = True  # False: a rehearsal, whose numbers mean nothing


def _at(depth: int, batch: int) -> dict[str, int]:
    return {"depth": depth, "batch": batch}


PAPER = Plan(
    Geometry(),
    (
        Case("step", 40, _at(16, 32)),
        Case("sampling", 20, _at(16, 8)),
        Case("step", 45, _at(20, 32)),
        Case("attention", 20, _at(16, 32)),
        Case("stage 1", 50, {"batch": 8}),
        Case("tokens", 25, {"batch": 128}),
        Case("tokens", 12, {"batch": 16}),
        Case("step", 35, _at(16, 64)),
        Case("step", 45, _at(20, 64)),
        Case("sampling", 15, _at(24, 8)),
        Case("sampling", 20, _at(30, 8)),
        Case("compiled step", 60, _at(16, 32)),
        Case("small launches", 12, {"batch": 8}),
        Case("one process", 25, _at(16, 32)),
        Case("checkpointing", 15, _at(16, 32)),
        Case("slices", 15, _at(16, 32)),
        Case("optimizer", 10, {"depth": 16}),
        Case("loading", 15),
        Case("sampling", 12, _at(16, 1)),
        Case("sampling", 12, _at(16, 64)),
        Case("sampling", 12, _at(24, 1)),
        Case("sampling", 15, _at(30, 1)),
        Case("sampling", 20, _at(24, 64)),
        Case("sampling", 30, _at(30, 64)),
        Case("graphed sampling", 12, _at(16, 1), cuda=True),
        Case("graphed sampling", 12, _at(16, 8), cuda=True),
        Case("stage 1", 40, {"batch": 16}),
        Case("compiled sampling", 60, _at(16, 8)),
        Case("compiled stage 1", 120, {"batch": 8}),
    ),
)

REHEARSAL = Plan(
    Geometry(image_size=32, patch_nums=(1, 2), codes=64, ch=32, states=2, rho_max=3.0),
    (
        Case("step", 5, _at(2, 2)),
        Case("sampling", 5, _at(2, 8)),
        Case("attention", 5, _at(2, 2)),
        Case("stage 1", 10, {"batch": 2}),
        Case("tokens", 5, {"batch": 2}),
        Case("small launches", 5, {"batch": 2}),
        Case("one process", 5, _at(2, 2)),
        Case("checkpointing", 5, _at(3, 2)),
        Case("slices", 5, _at(2, 2)),
        Case("optimizer", 5, {"depth": 2}),
        Case("loading", 10),
        Case("graphed sampling", 5, _at(2, 1), cuda=True),
        Case("compiled step", 60, _at(3, 2), cuda=True),
        Case("compiled sampling", 60, _at(2, 2), cuda=True),
        Case("compiled stage 1", 120, {"batch": 2}, cuda=True),
    ),
    Pace(turns=1, warm=1, runs=1),
    meant=False,
)
