"""The order of the images: a function of seed and step only, independent of the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from refocus_ext.errors import UsageError
from refocus_ext.seeds import Stream, stream_seed

T = TypeVar("T")


@dataclass(frozen=True)
class SampleKey:
    """One image of one epoch; the randomness of its crop is derived from this."""

    epoch: int
    index: int


class StepBatches(Sampler[list[SampleKey]]):
    """The batches of steps `start .. stop-1`, cut from one endless global order.

    Epoch e is a permutation derived from (seed, e); position p of the order is image p mod N of epoch p // N. Step t
    takes positions t*batch .. (t+1)*batch, of which this rank takes its contiguous share, in `accumulate` micro-batches.
    So the order is unchanged by a resume or another number of processes: no image is lost or repeated.

    Raises:
        UsageError: the batch cannot be divided among the processes and micro-batches.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        *,
        start: int,
        stop: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch % (world * accumulate):
            raise UsageError(
                f"a batch size of {batch} does not divide over {world} processes and {accumulate} micro-batches; choose a "
                f"multiple of {world * accumulate}."
            )
        self.images, self.batch, self.start, self.stop = images, batch, start, stop
        self.seed, self.rank, self.share, self.micro = seed, rank, batch // world, batch // world // accumulate
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.share // self.micro)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start, self.stop):
            first = step * self.batch + self.rank * self.share
            for begin in range(first, first + self.share, self.micro):
                yield [self._key(position) for position in range(begin, begin + self.micro)]

    def _key(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self.images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng(stream_seed(self.seed, Stream.DATA_ORDER, epoch)).permutation(
                self.images
            )
        return SampleKey(epoch, int(self._order[offset]))


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced, for pictures and quick validations."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in pieces of `size`, the last one shorter."""
    return (items[first : first + size] for first in range(0, len(items), size))
