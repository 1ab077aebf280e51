"""Checkpoints of sharded runs: every process writes its own shards, in the background, through torch.distributed.checkpoint.

A training step waits until its shards are copied to host memory, not for the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import Tensor
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils._pytree import tree_map_only

from refocus_ext.engine.checkpoints import MANIFEST, REST, Checkpoints
from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed
from refocus_ext.storage.atomic import publish_folder, remove, remove_torn, save_json, save_tensors, sha256


class ShardedSaver:
    """Saves the states of a sharded run to its folder `checkpoints/`. All processes call each method together.

    Args:
        folder: seen by all processes.
        keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self.store, self.world = Checkpoints(folder, keep), world
        self.group: Any = dist.new_group(backend="gloo")  # the thread's own: its messages must not mix with the steps'
        self.written: Future[Any] | None = None
        self.publisher: threading.Thread | None = None  # on rank 0
        self.error: BaseException | None = None
        self.step = 0

    def begin(self, step: int, state: dict[str, Any], then: Callable[[], None]) -> None:
        """Copies the state after `step` steps, and goes on in the background; a save that is under way is waited for.

        Args:
            state: "sharded" holds what each process has a part of, the rest is whole on every process.
            then: called in the background once the checkpoint is complete, on rank 0.

        Raises:
            RunFailed: the save before failed.
        """
        self.finish()
        draft = self.store.folder / f".step-{step:08d}.draft.part"
        if self.world.main:
            self.store.folder.mkdir(parents=True, exist_ok=True)
            remove_torn(self.store.folder)
        self.world.barrier()
        self.step, self.error = step, None
        writer = dcp.FileSystemWriter(draft)
        written: Any = dcp.async_save(state["sharded"], storage_writer=writer, process_group=self.group)
        self.written = written
        if self.world.main:
            rest = copied({name: value for name, value in state.items() if name != "sharded"} | {"step": step})
            self.publisher = threading.Thread(target=self._publish, args=(written, draft, rest, then))
            self.publisher.start()

    def _publish(self, written: Future[Any], draft: Path, rest: dict[str, Any], then: Callable[[], None]) -> None:
        try:
            written.result()  # of all processes
            save_tensors(draft / REST, rest)
            save_json(draft / MANIFEST, {path.name: sha256(path) for path in sorted(draft.iterdir())})
            path = self.store.folder / f"step-{self.step:08d}-{sha256(draft / MANIFEST)[:16]}.sharded"
            if path.is_dir():  # saved before, to the bit
                remove(draft)
            else:
                publish_folder(draft, path)
            then()
            self.store.drop_old()
        except (OSError, RuntimeError, CheckpointException, RunFailed) as error:
            self.error = error
            remove(draft)

    def finish(self) -> None:
        """Waits for the save that is under way.

        Raises:
            RunFailed: it failed; the checkpoint before it is intact.
        """
        if self.written is None:
            return
        error = self._wait()
        (failed,) = self.world.any(error is not None)
        if not failed:
            return
        if isinstance(error, RunFailed):
            raise error
        why = f" ({_reason(error)})" if error else ""
        raise RunFailed(
            f"the checkpoint of step {self.step} could not be written to {self.store.folder}{why}; the previous one is intact."
        ) from error

    def abandon(self) -> None:
        """Waits for this process's part, after an error that other processes may not share."""
        if self.written is not None:
            self._wait()

    def _wait(self) -> BaseException | None:
        assert self.written is not None
        written, self.written = self.written, None
        error: BaseException | None = None
        try:
            written.result()
        except (Exception, CheckpointException) as failed:  # CheckpointException is not an Exception
            error = failed
        if self.publisher is not None:
            self.publisher.join()
            self.publisher = None
        return self.error or error


def _reason(error: BaseException) -> str:
    """The first failure of a process, in a line."""
    causes = getattr(error, "failures", None)
    first = next(iter(causes.values()))[0] if causes else error
    return str(first).strip().splitlines()[-1] if str(first).strip() else type(first).__name__


def copied(value: Any) -> Any:
    """A snapshot on the host of nested dicts and lists with tensors."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), value)


def load_shards(folder: str, state: dict[str, Any], together: bool) -> None:
    """Reads a sharded checkpoint into the tensors of `state`, each process its own parts, whatever number of processes wrote it.

    Args:
        together: all processes call this with their shards; otherwise this process reads whole tensors alone.
    """
    dcp.load(state, checkpoint_id=folder, no_dist=not together)
