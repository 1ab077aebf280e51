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

from refocus_ext.engine.checkpoint_names import MANIFEST
from refocus_ext.engine.checkpoints import REST, Checkpoints
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
        self.group: Any = dist.new_group(
            backend="gloo"
        )  # the threads' own: their messages must not mix with the steps'
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.step = 0

    @property
    def failed(self) -> bool:
        """Whether this process's part of the save that is under way has failed."""
        return self.error is not None

    def begin(self, step: int, state: dict[str, Any], then: Callable[[], None]) -> None:
        """Copies the state after `step` steps, and goes on in the background; a save that is under way is waited for.

        Args:
            state: "sharded" holds what each process has a part of, the rest is whole on every process.
            then: called in the background on rank 0 after the checkpoint, also if that failed.

        Raises:
            RunFailed: the save before failed, or the folder cannot be written.
        """
        self.finish()
        self.step = step
        draft = self.store.folder / f".step-{step:08d}.draft.part"
        if self.world.main:
            try:
                self.store.folder.mkdir(parents=True, exist_ok=True)
                remove_torn(self.store.folder)
                draft.mkdir()
            except OSError as error:
                self.error = error
        self._agree()
        written: Any = dcp.async_save(
            state["sharded"], storage_writer=dcp.FileSystemWriter(draft), process_group=self.group
        )
        whole = {name: value for name, value in state.items() if name != "sharded"} | {"step": step}
        rest = copied(whole) if self.world.main else {}
        self.thread = threading.Thread(target=self._complete, args=(written, draft, rest, then))
        self.thread.start()

    def _complete(self, written: Future[Any], draft: Path, rest: dict[str, Any], then: Callable[[], None]) -> None:
        """In the background: each process checks its own files, and rank 0 publishes the checkpoint."""
        try:
            digests = self._digests(written, draft)
            if self.world.main:
                try:
                    self._publish(draft, rest, digests)
                finally:  # if the disk is too full for a checkpoint, the weights alone may still fit
                    then()
        except (Exception, CheckpointException) as error:  # CheckpointException is not an Exception
            self.error = error
            if self.world.main:
                remove(draft)

    def _digests(self, written: Future[Any], draft: Path) -> dict[str, str]:
        """On rank 0 the sha256 of all processes' files, once they are written.

        Raises:
            RunFailed: a process could not write its own.
        """
        mine: dict[str, str] = {}
        failure: BaseException | None = None
        try:
            written.result()  # of all processes
            mine = {path.name: sha256(path) for path in draft.glob(f"__{self.world.rank}_*")}
        except (Exception, CheckpointException) as error:
            failure = error
        told: list[Any] = [None] * self.world.size
        reason = _reason(failure) if failure else None
        dist.gather_object((mine, reason), told if self.world.main else None, dst=0, group=self.group)
        if failure:
            raise failure
        if self.world.main and (reasons := [reason for _, reason in told if reason]):
            raise OSError(reasons[0])
        return {name: digest for part in told if part for name, digest in part[0].items()}

    def _publish(self, draft: Path, rest: dict[str, Any], digests: dict[str, str]) -> None:
        save_tensors(draft / REST, rest)
        others = {path.name: sha256(path) for path in draft.iterdir() if path.name not in digests}
        save_json(draft / MANIFEST, dict(sorted((digests | others).items())))
        path = self.store.folder / f"step-{self.step:08d}-{sha256(draft / MANIFEST)[:16]}.sharded"
        if path.is_dir():  # saved before, to the bit
            remove(draft)
        else:
            publish_folder(draft, path)
        self.store.drop_old(path)

    def finish(self) -> None:
        """Waits for the save that is under way.

        Raises:
            RunFailed: it failed; the checkpoint before it is intact.
        """
        if self.thread is not None:
            self.abandon()
            self._agree()

    def abandon(self) -> None:
        """Waits for this process's part only, after an error that other processes may not share."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def _agree(self) -> None:
        """Raises RunFailed on every process if one has failed."""
        (failed,) = self.world.any(self.failed)
        if not failed:
            return
        error, self.error = self.error, None
        if isinstance(error, RunFailed):
            raise error
        why = f" ({_reason(error)})" if error else ""
        raise RunFailed(
            f"the checkpoint of step {self.step} could not be written to {self.store.folder}{why}; the previous one is intact."
        ) from error


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

    torch.distributed.checkpoint unpickles its index: read only checkpoints of your own runs. Their checksums have been verified.

    Args:
        together: all processes call this with their shards; otherwise this process reads whole tensors alone.
    """
    dcp.load(state, checkpoint_id=folder, no_dist=not together)
