"""Out of memory as one sentence: what a step took, what would fit, and the command that resumes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from refocus_ext import invocation
from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed

WORDS = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had too little memory; PyTorch has several errors for it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    )


def halving(batch: int, accumulate: int, processes: int) -> int | None:
    """The smallest number of micro-batches that halves their size at least; None if they are single images.

    >>> halving(24, 1, 1), halving(24, 2, 4), halving(9, 1, 1), halving(8, 8, 1)
    (2, 6, 3, None)
    """
    share = batch // processes
    fits = (number for number in range(2 * accumulate, share + 1) if share % number == 0)
    return next(fits, None) if share > accumulate else None


class MemoryWatch:
    """Measures the memory of steps, and turns a lack of it into a sentence.

    Args:
        batch: images per step, over all processes.
        accumulate: micro-batches per step on each process.
        checkpointing: whether --grad-checkpoint would help; None if the command has no such option.
    """

    def __init__(self, batch: int, accumulate: int, world: World, checkpointing: bool | None = None) -> None:
        self.batch, self.accumulate, self.world, self.checkpointing = batch, accumulate, world, checkpointing

    @contextmanager
    def watched(self, step: int) -> Iterator[None]:
        """
        Raises:
            RunFailed: training step `step` (0-based) ran out of memory.
        """
        kind, device = kind_of(self.world.device), self.world.device
        before = kind.memory_in_use(device)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            took = max(0, kind.peak_memory(device) - before)
            raise RunFailed(self._sentence(step, before, took)) from None

    @contextmanager
    def watched_validation(self, step: int) -> Iterator[None]:
        """
        Raises:
            RunFailed: validation after `step` steps ran out of memory.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunFailed(
                f"out of memory on {self.world.device} in the validation after step {step}: another program may use it, "
                f"and --batch-size is too large otherwise. The last checkpoint is intact; to resume: {invocation.again()}"
            ) from None

    def _sentence(self, step: int, before: int, took: int) -> str:
        micro = max(1, self.batch // self.accumulate // self.world.size)
        images = f"{micro} image{'s' * (micro > 1)}"
        arithmetic = (
            f"out of memory on {self.world.device} in step {step + 1}: a micro-batch of {images} took "
            f"{size_in_words(took)} and more, beside {size_in_words(before)} for weights and optimizer"
        )
        advice, changes = self._advice(micro, took)
        resume = f"The last checkpoint is intact; to resume: {invocation.again(changes)}" if changes else ""
        return f"{arithmetic}. {advice} {resume}".strip()

    def _advice(self, micro: int, took: int) -> tuple[str, dict[str, str | None]]:
        number = halving(self.batch, self.accumulate, self.world.size)
        if number is not None:
            smaller = max(1, self.batch // number // self.world.size)
            advice = f"--accumulate {number} makes that {smaller}, about {size_in_words(took * smaller // micro)}"
            extra = ", and --grad-checkpoint saves more" if self.checkpointing else ""
            return f"{advice}{extra}.", {"--accumulate": str(number)}
        if self.checkpointing:
            return "--grad-checkpoint keeps fewer activations.", {"--grad-checkpoint": None}
        return "It cannot be smaller: take a smaller model or image, or a device with more memory.", {}


def size_in_words(count: float) -> str:
    """
    >>> size_in_words(3 * 2**29), size_in_words(3 * 2**20)
    ('1.5 GiB', '3 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
