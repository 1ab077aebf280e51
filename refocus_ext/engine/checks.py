"""Checks before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refocus_ext.counting import counted
from refocus_ext.engine.checkpoints import is_checkpoint
from refocus_ext.engine.run_folder import trained_with, untrained
from refocus_ext.engine.wandb_board import check_wandb
from refocus_ext.errors import UsageError, named
from refocus_ext.images.class_names import check_class_map
from refocus_ext.images.order import StepBatches
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.options.kinds import AUTO
from refocus_ext.options.shared import WANDB


def check_run_options(options: Any, images: ImageSource) -> None:
    """Raises UsageError where the options that `Training` reads do not fit each other or the data."""
    if getattr(options, "log", "") == WANDB:
        check_wandb()
    if options.resume not in ("auto", "never") and not is_checkpoint(Path(options.resume)):
        raise UsageError(
            f"--resume {options.resume} is not a checkpoint; it takes auto, never, or a step-* of a run's checkpoints/."
        )
    if options.grad_checkpoint and options.compile:
        raise UsageError("--grad-checkpoint and --compile do not go together; omit one of them.")
    if options.accumulate != AUTO and options.batch_size % options.accumulate:
        raise UsageError(
            f"--accumulate {options.accumulate} does not divide --batch-size {options.batch_size}; choose one that does."
        )
    if options.batch_size > len(images):
        hint = f"; --preset {options.preset} is meant for --data DIR"
        if options.data:
            hint = "; --preset demo has sizes for a few images"
        if options.preset == "demo":
            hint = ""
        raise UsageError(
            f"--batch-size {options.batch_size} is larger than the data set of {counted(len(images), 'image')}; choose at most "
            f"{len(images)}{hint}."
        )


def check_gpu_memory(options: Any) -> None:
    """Raises UsageError where a size of GPUs is given to a run that is not only planned."""
    if options.gpu_memory and not options.dry_run:
        raise UsageError(f"--gpu-memory {options.gpu_memory:g} is for plans only; add --dry-run, or omit it.")


def check_share(options: Any, images: ImageSource, processes: int) -> None:
    """Raises UsageError if the batch cannot be divided among the processes; otherwise their loaders would fail later."""
    batch, accumulate = options.batch_size, options.accumulate or 1  # auto chooses a number that divides
    with named("--batch-size"):
        StepBatches(len(images), batch, start=0, stop=0, seed=0, world=processes, accumulate=accumulate)


def check_classes(out: Path, classes: Sequence[str]) -> None:
    """Raises UsageError if a run that has begun in `out` numbered its classes otherwise."""
    if not untrained(out):
        with named("--out"):
            check_class_map(out / "classes.json", classes)


def check_init(options: Any, out: Path, what: str) -> str:
    """The --init file if it is gone and not needed, because the run in `out` has begun from it; '' otherwise.

    Raises:
        UsageError: there is no such file or folder, and the run has not begun.
    """
    if not options.init or Path(options.init).exists():
        return ""
    if options.resume == "auto" and trained_with(out, "init", options.init):
        return str(options.init)
    raise UsageError(f"--init {options.init} is not a file; it takes {what}.")
