"""Whether a run fits into memory, and into how many micro-batches a step must be split to fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.memory.watch import size_in_words
from refocus_ext.errors import UsageError
from refocus_ext.options.kinds import AUTO

ROOM = 0.9  # share of the free memory that a plan fills; the rest is for the allocator's gaps and cuDNN's workspaces


@dataclass(frozen=True)
class MemoryNeed:
    """What training takes on one process, in bytes.

    Args:
        fixed: for any number of images: weights, moments, averaged weights.
        activations: for each image of a micro-batch.
        gradients: they grow while the activations of the first micro-batch shrink, and stay beside those of the next ones.
        held: for each image of the process's share of a step, until the step ends.

    >>> need = MemoryNeed(fixed=100, activations=10, gradients=30, held=1)
    >>> need.of(share=8, accumulate=1), need.of(share=8, accumulate=2), need.of(share=8, accumulate=8)
    (188, 178, 148)
    """

    fixed: int
    activations: int
    gradients: int = 0
    held: int = 0

    def of(self, share: int, accumulate: int) -> int:
        """Bytes of a step of `share` images in `accumulate` micro-batches."""
        kept = -(-share // accumulate) * self.activations
        both = max(kept, self.gradients) if accumulate == 1 else kept + self.gradients
        return self.fixed + share * self.held + both

    def smallest_accumulate(self, share: int, limit: float) -> int | None:
        """The smallest number of micro-batches within `limit` bytes; None if single images are too large.

        >>> MemoryNeed(fixed=100, activations=10).smallest_accumulate(share=8, limit=130)
        4
        """
        return next((number for number in splits(share) if self.of(share, number) <= limit), None)


@dataclass(frozen=True)
class Budget:
    """What a run needs of memory on each process, and what it has.

    Args:
        plain, recomputed: the need without and with --grad-checkpoint.
        share: images of a step on each process.
        free: bytes on the fullest device; None if they are not known.
        checkpointed: whether --grad-checkpoint is on.
    """

    plain: MemoryNeed
    recomputed: MemoryNeed
    share: int
    free: int | None
    checkpointed: bool

    @property
    def need(self) -> MemoryNeed:
        return self.recomputed if self.checkpointed else self.plain

    def choose(self, accumulate: int) -> int:
        """The number of micro-batches; for "auto" the smallest that fits, or single images where none does."""
        if accumulate != AUTO:
            return accumulate
        if self.free is None:
            return 1
        return self.need.smallest_accumulate(self.share, ROOM * self.free) or max(1, self.share)

    def require(self, accumulate: int, device: torch.device, smaller: str) -> None:
        """
        Args:
            smaller: what to choose where not even one image fits.

        Raises:
            UsageError: the estimate exceeds the free memory of a device that cannot swap.
        """
        need = self.need.of(self.share, accumulate)
        if self.free is None or need <= self.free or kind_of(device).swaps:
            return
        micro = max(1, self.share // accumulate)
        images = f"{micro} images at once need" if micro > 1 else "one image at once needs"
        raise UsageError(
            f"{images} about {size_in_words(need)}{' with --grad-checkpoint' * self.checkpointed} on each process, but "
            f"{device} has {size_in_words(self.free)} free; {self._way_out(ROOM * self.free, smaller)}."
        )

    def _way_out(self, limit: float, smaller: str) -> str:
        plain = None if self.checkpointed else self.plain.smallest_accumulate(self.share, limit)
        other = self.recomputed.smallest_accumulate(self.share, limit)
        ways = [f"--accumulate {plain}"] if plain else []
        if other and (not plain or other < plain):
            ways.append(f"--accumulate {other}{' --grad-checkpoint' * (not self.checkpointed)}")
        least = self.recomputed.of(self.share, max(1, self.share))
        return f"give {' or '.join(ways)}" if ways else f"{smaller}: one image needs {size_in_words(least)}"

    def line(self, accumulate: int, device: torch.device) -> str:
        """A line of the plan."""
        micro, need = max(1, self.share // accumulate), self.need
        line = (
            f"memory: about {size_in_words(need.of(self.share, accumulate))} on each process for {micro} "
            f"image{'s' * (micro > 1)} at once (--accumulate {accumulate}), {size_in_words(need.fixed + need.gradients)} of "
            "them for weights, gradients and optimizer"
        )
        if self.free is not None:
            line += f"; {size_in_words(self.free)} are free"
        return line if device.type == "cuda" else f"{line} (counted for this {device.type.upper()}; a GPU keeps more)"


def free_memory(world: World, gpu_memory: float = 0) -> int | None:
    """Free bytes of the device of this process, or of the fullest device of all processes; None if they are not known. Of the plan
    for a GPU elsewhere its `gpu_memory` (GiB). Processes of a machine share its memory where they have no devices of their own."""
    if gpu_memory:
        return round(gpu_memory * 2**30)
    kind = kind_of(world.device)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("NPROC") or 1) if kind.swaps else 1
    free = [value // sharing for value in world.gather(kind.free_memory(world.device)) if value is not None]
    return min(free, default=None)


def splits(share: int) -> Iterator[int]:
    """The numbers of equal micro-batches of `share` images, rising.

    >>> list(splits(12))
    [1, 2, 3, 4, 6, 12]
    """
    return (number for number in range(1, share + 1) if share % number == 0)
