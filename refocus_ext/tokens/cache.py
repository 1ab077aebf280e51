"""The token cache of stage 2: a folder of token shards with their origin recorded, and the data set that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from refocus_ext.counting import counted
from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.life_sign import LifeSign, other_writer
from refocus_ext.engine.progress import duration
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.checks import broken_limit
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.views import ViewCrops, ViewPlan
from refocus_ext.tokens.builder import Built, CacheBuilder
from refocus_ext.tokens.identity import CacheIdentity
from refocus_ext.tokens.index import inspect, read_index, require_space, size_text, write_index
from refocus_ext.tokens.shards import Layout, find_shards, layout_of, open_shard
from refocus_ext.tokens.tokenize import pick_precision, prepare
from refocus_ext.tokens.trained_tokenizer import Tokenizer


@dataclass(frozen=True)
class CacheSource:
    """What a token cache is made from: every view of `plan` of the images, resized to `scale` crops, by a tokenizer whose
    encoders compute in `precision`."""

    tokenizer: Tokenizer
    images: ImageSource
    plan: ViewPlan
    scale: float
    precision: str

    def identity(self) -> CacheIdentity:
        return CacheIdentity.of(self.tokenizer, self.images, self.plan, scale=self.scale, precision=self.precision)

    def layout(self, shard_images: int | None = None) -> Layout:
        return layout_of(self.tokenizer, len(self.images), self.plan.views, shard_images)

    def crops(self) -> ViewCrops:
        """The views as images."""
        return ViewCrops(self.images, self.tokenizer.pyramid.image_size, scale=self.scale, plan=self.plan)


class TokenSample(NamedTuple):
    """One view of an image as tokens, or a batch of them after collation; labels and `broken` as of `data.Sample`."""

    structure: Tensor  # (L,) or (B,L) int64
    alias: Tensor  # (T,) or (B,T) int64
    label: Any  # int, or (B,) int64
    broken: Any  # index of an image that could not be decoded and was replaced, else -1


class TokenCache(Dataset[TokenSample]):
    """The cached views by `SampleKey`; `open_cache` makes one.

    Picklable: the shards are memory-mapped by each process when it first needs them.
    """

    def __init__(self, images: ImageSource, plan: ViewPlan, layout: Layout, paths: dict[int, Path]) -> None:
        self.images, self.plan, self.layout, self.paths = images, plan, layout, paths
        self.known_broken: set[int] = set()
        self.broken_limit = broken_limit(images)
        self._open: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> TokenSample:
        return self.read(key.index, self.plan.view_of(key))

    def read(self, index: int, view: int) -> TokenSample:
        """One view of an image."""
        shard, row = divmod(index, self.layout.shard_images)
        if shard not in self._open:
            self._open[shard] = open_shard(self.paths[shard])
        tokens = torch.from_numpy(self._open[shard][row, view].astype(np.int64))
        structure, alias, further = tokens.split([self.layout.structure, self.layout.alias, 1])
        label = self.images.label((index + int(further)) % len(self.images))
        return TokenSample(structure, alias, label, index if further else -1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}


def open_cache(folder: Path, source: CacheSource, world: World, *, verify: bool = True) -> TokenCache:
    """Opens the complete token cache in `folder`; every shard is checked, each process taking its share.

    Args:
        verify: False right after `build_cache`, which has checked or written every shard.

    Raises:
        UsageError: the cache is missing, of another identity, incomplete, or has a damaged shard.
    """
    layout = read_index(folder, source.identity())
    if layout is None:
        raise UsageError(f"there is no token cache in {folder}; `bash run.sh tokens` makes one.")
    if verify and (damaged := inspect(folder, layout, world).damaged):
        names = " and ".join(path.name for path in damaged.values())
        raise UsageError(
            f"the token cache {folder} is damaged ({names}: the contents do not match the checksum in the name); "
            "rerun its `bash run.sh tokens` command to remake them."
        )
    paths = find_shards(folder, layout)
    if len(paths) < layout.shards:
        raise UsageError(
            f"the token cache {folder} is not finished: it has {len(paths)} of {layout.shards} shards; "
            "rerun its `bash run.sh tokens` command to resume."
        )
    return TokenCache(source.images, source.plan, layout, paths)


def check_cache(folder: Path, source: CacheSource, device: torch.device) -> None:
    """Checks what can be checked before a cache is made or continued in `folder`, on `device`; writes nothing.

    Raises:
        UsageError: the folder holds something else, its disk has too little space, or shards are missing and the device
            has no arithmetic like that of the others.
    """
    layout = read_index(folder, source.identity())
    there = find_shards(folder, layout) if layout else {}
    missing = source.layout() if layout is None else layout
    held = sum(path.stat().st_size for path in there.values())
    if len(there) < missing.shards:
        pick_precision(source.precision, device)
        require_space(folder, max(0, missing.bytes - held))


def build_cache(
    folder: Path,
    source: CacheSource,
    world: World,
    *,
    interruption: Interruption,
    batch_size: int | None = None,
    workers: int = 0,
    shard_images: int | None = None,
) -> Built:
    """Makes the missing shards of the cache in `folder`, after checking the existing ones.

    The result's exit code is 0 when the cache is complete, 130 or 143 after an interruption; the same call resumes.

    Args:
        shard_images: images in a shard of a new cache; None chooses by the number of images.

    Raises:
        UsageError: the folder holds something else or has too little space, or a codebook needs more than 16 bits.
        RunFailed: a shard cannot be written, or too many images cannot be decoded.
    """
    if not source.plan.crops:
        raise UsageError("a token cache holds a fixed number of crops, at least 1 of each image; give their number.")
    identity, wanted = source.identity(), source.layout(shard_images)
    layout = read_index(folder, identity)
    world.barrier()  # every process has read the folder before rank 0 writes
    if layout is None and world.main:
        require_space(folder, wanted.bytes)
        write_index(folder, identity, wanted)
    layout = layout or wanted
    world.barrier()
    missing, broken = _missing(folder, layout, world)
    if not missing:
        return Built(0, 0, 0, 0.0, broken)
    builder = CacheBuilder(
        folder,
        prepare(source.tokenizer),
        source.crops(),
        layout,
        world,
        precision=source.precision,
        batch_size=batch_size or kind_of(world.device).views_at_once,
        workers=workers,
    )
    built = _alone(folder, world, lambda: builder.build(missing, broken, interruption))
    if built.exit_code:
        there = len(find_shards(folder, layout))
        world.say(f"stopped with {there} of {layout.shards} shards finished; rerun the same command to resume")
    return built


def _alone(folder: Path, world: World, build: Callable[[], Built]) -> Built:
    """Builds while no other command does: two would write the same files.

    Raises:
        RunFailed: another one does.
    """
    seen = other_writer(folder) if world.main else None
    (taken,) = world.any(seen is not None)
    if taken:
        who = f"the process {seen.pid} on {seen.host}" if seen else "another process"
        raise RunFailed(
            f"{folder} is being made by {who}; wait until it is finished and rerun the same command, which then reads it."
        )
    sign = LifeSign(folder) if world.main else None
    try:
        return build()
    finally:
        if sign:
            sign.end()


def _missing(folder: Path, layout: Layout, world: World) -> tuple[list[int], int]:
    """The shards still to be made, and the broken images of the existing ones; damaged shards are removed."""
    found = inspect(folder, layout, world)
    for path in found.damaged.values():
        world.say(f"{path} is damaged: its contents do not match the checksum in its name; making it again")
        if world.main:
            path.unlink()
    missing = [number for number in range(layout.shards) if number not in found.intact]
    if missing and found.intact:
        world.say(f"{len(found.intact)} of {layout.shards} shards exist and are intact; making the others")
    if missing and world.main:
        images = sum(len(layout.images_of(number)) for number in missing)
        require_space(folder, layout.bytes * images // layout.images)
    world.barrier()
    return missing, found.broken


def summary(folder: Path, layout: Layout, built: Built) -> str:
    """One line: the contents of a complete cache, and the speed of this build."""
    whole = "" if built.tokens == layout.tokens else f"{built.tokens:,} of them "
    pace = f"{whole}made in {duration(built.seconds)} ({built.tokens / max(built.seconds, 1e-9):,.0f} tokens/s)"
    were = "was" if built.broken == 1 else "were"
    replaced = f"; {counted(built.broken, 'image')} cannot be decoded and {were} replaced" if built.broken else ""
    return (
        f"{folder}: {counted(layout.images, 'image')}, {counted(layout.images * layout.views, 'view')}, {layout.tokens:,} tokens, "
        f"{size_text(layout.bytes)}; {pace if built.tokens else 'complete and verified, nothing to do'}{replaced}"
    )


def default_folder(tokenizer: Tokenizer) -> Path:
    """The default folder of the cache of a tokenizer: in its run, or beside its bare file."""
    return tokenizer.path.with_name(f"{tokenizer.path.name}.tokens") if tokenizer.bare else tokenizer.path / "tokens"
