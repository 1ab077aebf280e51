"""Where a run's metrics and pictures go beside metrics.jsonl: TensorBoard, Weights & Biases, or nowhere (--log)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from refocus_ext.options.shared import TENSORBOARD, WANDB

__all__ = ["TENSORBOARD", "WANDB", "Board", "open_board"]


class Board(Protocol):
    """Shows a run while it trains. It must not change a run, nor stop it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image_HWC: Any) -> None:
        """Args: image_HWC: (H,W,3) uint8."""
        ...

    def where(self) -> str:
        """How to look at it, for the closing lines; "" if there is nothing to look at."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the folder `tensorboard/` of a run.

    Args:
        step: the run continues after it; later records are dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image_HWC: Any) -> None:
        self._writer.add_image(name, image_HWC, step, dataformats="HWC")

    def where(self) -> str:
        return "TensorBoard (`tensorboard --logdir`)"

    def close(self) -> None:
        self._writer.close()


class NoBoard:
    """metrics.jsonl alone."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image_HWC: Any) -> None: ...

    def where(self) -> str:
        return ""

    def close(self) -> None: ...


def open_board(kind: str, run: Path, step: int, options: Mapping[str, Any]) -> Board:
    """The board of a run that continues after `step`.

    Args:
        kind: "tensorboard", "wandb" or "none".
        options: of the run, for boards that show them.
    """
    if kind == TENSORBOARD:
        return TensorBoard(run, step)
    if kind == WANDB:
        from refocus_ext.engine.wandb_board import WandbBoard

        return WandbBoard(run, options)
    return NoBoard()
