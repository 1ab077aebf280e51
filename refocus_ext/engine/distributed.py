"""One process or many: torchrun's variables, a process group that starts for all or fails for all, and small collectives."""

from __future__ import annotations

import datetime
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from refocus_ext.engine.devices import kind_of, pick_device
from refocus_ext.errors import RunFailed

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run. Only `rank` 0 writes files and prints."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def say(self, text: str = "") -> None:
        """Prints a line, on rank 0."""
        if self.main:
            print(text, flush=True)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process: one small all-reduce."""
        if self.size == 1:
            return flags
        votes = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(vote > 0 for vote in votes.tolist())

    def any_of(self, flags: torch.Tensor) -> torch.Tensor:
        """The same for a bool tensor on the device, without waiting for it."""
        if self.size == 1:
            return flags
        votes = flags.to(torch.uint8)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return votes.bool()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over processes, on the tensor's own device."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, value: T) -> list[T]:
        """The (picklable) values of all processes, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place: rank 0's values on every process."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sync_gradients(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """For the backward pass of a micro-batch of a `parallel` module: gradients are synchronized with the last one only."""
        return nullcontext() if last or self.size == 1 else module.no_sync()  # type: ignore[operator]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, wrapped in DistributedDataParallel if there are several processes."""
        if self.size == 1:
            return module
        ids = None if self.device.index is None else [self.device.index]
        with warnings.catch_warnings():  # renamed after torch 2.11; the oldest supported version has only this name
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def planned(world: World, gpu_memory: float = 0) -> World:
    """For --dry-run, which run.sh starts in one process: the world of as many processes as the run would have, on GPUs that may
    be elsewhere if `gpu_memory` (GiB) says how large they are.

    It must not communicate, nor use its device.
    """
    device = torch.device("cuda") if gpu_memory else world.device
    size = int(os.environ.get("REFOCUS_PROCESSES") or world.size) if world.size == 1 else world.size
    return replace(world, size=size, device=device)


def preflight_device(name: str) -> torch.device:
    """The device that the processes of this machine will have, before any of them is started.

    Raises:
        UsageError: it is not there, or there are too few.
    """
    device = pick_device(name)
    kind_of(device).require(int(os.environ.get("NPROC") or 1))
    return device


LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup", "Broken pipe")


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone; the backends have words of their own for it."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)


def _in_short(error: BaseException) -> str:
    """Without the place in the backend's source, and its first sentence alone.

    >>> _in_short(RuntimeError("[/a/gloo/pair.cc:5] Read error [::1]:9: Connection reset by peer. This is typically caused by"))
    'Read error [::1]:9: Connection reset by peer'
    """
    lines = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ", "", str(error).strip()).splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Joins the process group that torchrun describes (nccl on CUDA, gloo on CPUs); without torchrun it is a single process.

    After an error the group is left as it is: with NCCL destroying it waits for the other processes, which may be waiting for this
    one, and the error would not be said. `__main__.leave` ends the process without it.

    Raises:
        RunFailed: the group did not form, or a process of it was lost; no process continues alone.
        UsageError: the device is not available.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(0, 1, pick_device(device))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    kind = kind_of(pick_device(device))
    kind.require(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)))
    chosen = kind.of_process(local)
    seconds = float(os.environ.get("REFOCUS_DIST_TIMEOUT", "600"))
    try:
        dist.init_process_group(kind.backend, timeout=datetime.timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise RunFailed(f"the process group did not start on rank {os.environ.get('RANK')}: {error}") from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise RunFailed(
            f"another process of this run ended or could not be reached (rank {os.environ.get('RANK')}: {_in_short(error)}). "
            "What it printed before says why; the last checkpoint is intact: rerun the same command to resume."
        ) from None
    dist.destroy_process_group()
