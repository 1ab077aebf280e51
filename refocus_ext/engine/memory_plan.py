"""Whether a run fits into memory, and into how many micro-batches it must be split to fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.memory import size_in_words
from refocus_ext.errors import UsageError
from refocus_ext.options.kinds import AUTO

ROOM = 0.9  # share of the free memory that a plan fills; the rest is for the allocator's gaps and cuDNN's workspaces


@dataclass(frozen=True)
class MemoryNeed:
    """What training takes on one process, in bytes.

    Args:
        fixed: for any number of images: weights, gradients, moments.
        activations: for each image of a micro-batch.
        held: for each image of the process's share of a step, until the step ends.

    >>> MemoryNeed(fixed=100, activations=10, held=1).of(share=8, accumulate=2)
    148
    """

    fixed: int
    activations: int
    held: int = 0

    def of(self, share: int, accumulate: int) -> int:
        """Bytes of a step of `share` images in `accumulate` micro-batches."""
        return self.fixed + share * self.held + -(-share // accumulate) * self.activations


class Needs(NamedTuple):
    """Of a run without and with --grad-checkpoint."""

    plain: MemoryNeed
    checkpointed: MemoryNeed

    def chosen(self, checkpointed: bool) -> MemoryNeed:
        return self.checkpointed if checkpointed else self.plain


def free_memory(world: World) -> int | None:
    """Free bytes of the device of this process, or of the fullest device of all processes; None if it is not known."""
    free = [value for value in world.gather(kind_of(world.device).free_memory(world.device)) if value is not None]
    return min(free, default=None)


def splits(share: int) -> Iterator[int]:
    """The numbers of equal micro-batches of `share` images, rising.

    >>> list(splits(12))
    [1, 2, 3, 4, 6, 12]
    """
    return (number for number in range(1, share + 1) if share % number == 0)


def smallest_accumulate(need: MemoryNeed, share: int, limit: float) -> int | None:
    """The smallest number of micro-batches within `limit` bytes; None if single images are too large.

    >>> smallest_accumulate(MemoryNeed(fixed=100, activations=10), share=8, limit=130)
    4
    """
    return next((number for number in splits(share) if need.of(share, number) <= limit), None)


def chosen_accumulate(accumulate: int, need: MemoryNeed, share: int, free: int | None) -> int:
    """The number of micro-batches; for "auto" the smallest that fits, or single images where none does."""
    if accumulate != AUTO:
        return accumulate
    if free is None:
        return 1
    return smallest_accumulate(need, share, ROOM * free) or max(1, share)


def require_memory(
    needs: Needs, share: int, accumulate: int, checkpointed: bool, free: int | None, where: str, smaller: str
) -> None:
    """
    Args:
        share: images of a step on each process.
        where: the device.
        smaller: what to choose where not even one image fits.

    Raises:
        UsageError: the estimate exceeds the free memory.
    """
    need = needs.chosen(checkpointed).of(share, accumulate)
    if free is None or need <= free:
        return
    micro = max(1, share // accumulate)
    images = f"{micro} images at once need" if micro > 1 else "one image at once needs"
    raise UsageError(
        f"{images} {size_in_words(need)}{' with --grad-checkpoint' * checkpointed} on each process, but {where} has "
        f"{size_in_words(free)} free; {_way_out(needs, share, checkpointed, free, smaller)}."
    )


def _way_out(needs: Needs, share: int, checkpointed: bool, free: int, smaller: str) -> str:
    plain = None if checkpointed else smallest_accumulate(needs.plain, share, ROOM * free)
    other = smallest_accumulate(needs.checkpointed, share, ROOM * free)
    ways = [f"--accumulate {plain}"] if plain else []
    if other and (not plain or other < plain):
        ways.append(f"--accumulate {other}{' --grad-checkpoint' * (not checkpointed)}")
    if not ways:
        return f"one image at once needs {size_in_words(needs.checkpointed.of(share, share))} with --grad-checkpoint: {smaller}"
    return f"give {' or '.join(ways)}"


def in_words(need: MemoryNeed, share: int, accumulate: int, free: int | None) -> str:
    """A line of the plan: what each process needs, for how many images at once, of how much."""
    micro = max(1, share // accumulate)
    line = (
        f"memory: about {size_in_words(need.of(share, accumulate))} on each process for {micro} image{'s' * (micro > 1)} at once "
        f"(--accumulate {accumulate}), {size_in_words(need.fixed)} of them for weights, gradients and optimizer"
    )
    return f"{line}; {size_in_words(free)} are free" if free is not None else line
