"""Makes the shards of a token cache, on one process or many, a batch at a time.

Shapes: B images of a batch, V views of an image. A batch is a fixed run of images of one shard with all their views, so
that the tokens do not depend on the number of processes or on where an interrupted build resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption, from_loader, leave_signals_to_parent
from refocus_ext.engine.progress import Progress
from refocus_ext.errors import RunFailed
from refocus_ext.images.views import ViewCrops
from refocus_ext.tokens.shards import Layout, write_shard
from refocus_ext.tokens.tokenize import tokenize
from refocus_ext.tokens.trained_tokenizer import Tokenizer


@dataclass(frozen=True)
class Built:
    """The result of a build, over all processes."""

    exit_code: int  # 0 complete, 130 or 143 interrupted
    images: int
    tokens: int
    seconds: float
    broken: int  # images of the whole cache that could not be decoded


class _Views(Dataset[tuple[Tensor, int]]):
    """All views of an image, by its index."""

    def __init__(self, crops: ViewCrops) -> None:
        self.crops = crops

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.crops.all_views(index)


class _Batch(NamedTuple):
    """A batch of a shard whose tokens are on their way."""

    shard: int
    indices: list[int]
    further_B: Tensor
    tokens: Callable[[], Tensor]


class CacheBuilder:
    """Makes the missing shards of a cache.

    Args:
        crops: the images and their views.
        batch_size: views encoded at once.
        workers: loader processes per process.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        crops: ViewCrops,
        layout: Layout,
        world: World,
        *,
        precision: str,
        batch_size: int,
        workers: int,
    ) -> None:
        self.folder, self.tokenizer, self.crops, self.layout, self.world = folder, tokenizer, crops, layout, world
        self.precision, self.batch_size, self.workers = precision, batch_size, workers
        self.done = 0  # images, on this process
        self.filled = 0  # images in `rows`, of the shard that is being made

    def build(self, missing: Sequence[int], broken: int, interruption: Interruption) -> Built:
        """Makes the shards `missing`; each process takes its share, and all stop together.

        Args:
            broken: images in the existing shards that could not be decoded.

        Raises:
            RunFailed: a shard cannot be written, or too many images cannot be decoded.
        """
        shares = [missing[rank :: self.world.size] for rank in range(self.world.size)]
        rounds = max(sum(len(self._batches(shard)) for shard in share) for share in shares)
        images = sum(len(self.layout.images_of(shard)) for shard in missing)
        work, began, done = self._work(shares[self.world.rank]), time.monotonic(), 0
        progress = Progress(0, rounds, images / rounds, quiet=not self.world.main, unit="batch")
        try:
            for number in range(1, rounds + 1):
                error = self._advance(work)
                code = interruption.agreed(self.world)
                failed, all_broken, done = self._agree(error)
                if failed:
                    raise error or RunFailed("another process failed; its error is above.")
                self._limit_broken(broken + all_broken)
                progress.update(number, {"tokens/s": self._tokens(done) / (time.monotonic() - began)})
                if code and number < rounds:
                    return Built(code, done, self._tokens(done), time.monotonic() - began, broken + all_broken)
        finally:
            progress.close()
            work.close()
        return Built(0, done, self._tokens(done), time.monotonic() - began, broken + all_broken)

    def _batches(self, shard: int) -> list[list[int]]:
        """The images of a shard, in the batches in which they are loaded."""
        indices = list(self.layout.images_of(shard))
        size = max(1, self.batch_size // self.layout.views)
        return [indices[first : first + size] for first in range(0, len(indices), size)]

    def _work(self, shards: Sequence[int]) -> Generator[int, None, None]:
        """Makes one batch at a time and yields its number of images; a shard is written with its last batch."""
        loader = DataLoader(
            _Views(self.crops),
            batch_sampler=[batch for shard in shards for batch in self._batches(shard)],
            num_workers=self.workers,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=kind_of(self.world.device).pins_memory,
        )
        batches, late = iter(loader), None
        for shard in shards:
            for indices in self._batches(shard):
                views_BV3HW, further_B = next(batches)
                batch = _Batch(shard, indices, further_B, self._tokens_of(views_BV3HW))
                if not kind_of(self.world.device).runs_behind:
                    yield self._store(batch)
                    continue
                if late:  # stored while the device encodes the next one
                    yield self._store(late)
                late = batch
        if late:
            yield self._store(late)

    def _tokens_of(self, views_BV3HW: Tensor) -> Callable[[], Tensor]:
        """Starts to encode a batch; the returned function waits for its tokens (B, V, L+T) on the CPU."""
        B, V = views_BV3HW.shape[:2]
        parts = [
            torch.cat(tokenize(self.tokenizer, views, self.precision), dim=1)
            for views in views_BV3HW.flatten(0, 1).split(self.batch_size)
        ]
        tokens = torch.cat(parts).unflatten(0, (B, V))
        return kind_of(tokens.device).fetch(tokens)

    def _store(self, batch: _Batch) -> int:
        """Adds a batch's rows (B, V, L+T+1) to its shard, which is written with its last batch; returns the images."""
        if not self.filled:
            self.rows = np.empty(self.layout.shape(batch.shard), dtype=np.uint16)
        tokens, count = batch.tokens(), len(batch.indices)
        further = batch.further_B[:, None, None].expand(count, self.layout.views, 1)
        self.rows[self.filled : self.filled + count] = torch.cat([tokens, further], dim=2).numpy()
        self._name_broken(batch.indices, batch.further_B)
        self.filled += count
        if self.filled == len(self.rows):
            write_shard(self.folder, batch.shard, self.rows)
            self.filled = 0
        return count

    def _name_broken(self, indices: Sequence[int], further_B: Tensor) -> None:
        for index in (indices[row] for row in further_B.nonzero().flatten().tolist()):
            self.crops.known_broken.add(index)
            print(f"broken image replaced: {self.crops.images.name(index)}", flush=True)

    def _advance(self, work: Iterator[int]) -> RunFailed | None:
        """Makes one batch, if this process has one left; returns the error if it failed."""
        try:
            self.done += next(work, 0)
        except RunFailed as error:
            error.with_traceback(None)  # its stack frames would keep the loader processes alive
            return from_loader(error)
        return None

    def _agree(self, error: RunFailed | None) -> tuple[bool, int, int]:
        """Over all processes: whether one failed, the broken images, the images done."""
        mine = [error is not None, len(self.crops.known_broken), self.done]
        total = self.world.sum(torch.tensor(mine, dtype=torch.float64)).tolist()
        failed, broken, done = (round(value) for value in total)
        return bool(failed), broken, done

    def _limit_broken(self, broken: int) -> None:
        if broken > self.crops.broken_limit:
            raise RunFailed(
                f"{broken} images of {len(self.crops)} cannot be decoded, more than the limit of {self.crops.broken_limit}; "
                "check the folder, remove these images and rerun the same command."
            )

    def _tokens(self, images: int) -> int:
        return images * self.layout.views * (self.layout.structure + self.layout.alias)
