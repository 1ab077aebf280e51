"""Checkpoints to resume from: atomic, checksummed by name, with a fallback to the previous one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from refocus_ext.engine.checkpoint_names import MANIFEST, NAME, checkpoints_in, entries_in
from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import remove, remove_torn, save_tensors, sha256

LEFT = "left"  # folder of checkpoints that a run has left by going on from an earlier one
REST = "rest.pt"  # of a sharded checkpoint: what every process holds whole


class CheckpointStore(Protocol):
    """Where a run keeps the states it can resume from. `checkpoints_of` chooses the store of a run."""

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Saves the state after `step` steps, completely or not at all."""
        ...

    def load_latest(self, say: Callable[[str], None] = print, world: World | None = None) -> dict[str, Any] | None:
        """The newest intact state, or None; the processes of `world` share the work and agree."""
        ...

    def newest_step(self) -> int | None:
        """Steps done at the newest checkpoint."""
        ...

    def set_aside(self, step: int) -> list[Path]:
        """Moves what is newer than `step` out of the way; returns where it is now."""
        ...

    def paths(self) -> list[Path]:
        """The checkpoints, oldest first; `load_checkpoint` reads them."""
        ...


def unfinished(run: Path, steps: int | None) -> str:
    """'25 of 300 steps' if the newest checkpoint of a run of so many shows that it was interrupted; otherwise ''."""
    newest = checkpoints_of(run).newest_step()
    return f"{newest} of {steps} steps" if newest is not None and steps is not None and newest < steps else ""


def checkpoints_of(run: Path, keep: int = 2) -> CheckpointStore:
    """The checkpoint store of a run folder.

    Args:
        keep: how many of the newest checkpoints are kept.
    """
    return Checkpoints(run / "checkpoints", keep)


class Checkpoints:
    """The folder `checkpoints/` of a run.

    A file's name carries its step and the start of its sha256, so one rename publishes data and checksum together:
    a kill at any moment leaves either the previous file or the new one, and a flipped bit is detected before loading.
    A sharded checkpoint (`sharded_checkpoints.py`) is a folder; its name carries the sha256 of its manifest, which has those of
    its files.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return checkpoints_in(self.folder)

    def newest_step(self) -> int | None:
        """Steps done at the newest checkpoint, by its name; None without one."""
        steps = [int(match[1]) for path in self.paths() if (match := NAME.search(path.name))]
        return max(steps, default=None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes the state after `step` steps and deletes all but the newest `keep` files.

        Raises:
            RunFailed: the disk is full or not writable; existing checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_torn(self.folder)
        draft = self.folder / f".step-{step:08d}.draft.part"
        try:
            save_tensors(draft, state | {"step": step})
            path = self.folder / f"step-{step:08d}-{sha256(draft)[:16]}.pt"
            os.replace(draft, path)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC into RuntimeError
            draft.unlink(missing_ok=True)
            raise RunFailed(
                f"the checkpoint of step {step} could not be written to {self.folder} ({error}); the previous one is intact."
            ) from error
        self.drop_old(path)
        return path

    def drop_old(self, written: Path) -> None:
        """Deletes all but the newest `keep` checkpoints, and never the one just written."""
        for old in self.paths()[: -self.keep]:
            if old != written:
                remove(old)

    def set_aside(self, step: int) -> list[Path]:
        """Moves what is newer than `step` to `left/`: a run that goes on from there leaves it, or it is damaged. Otherwise it
        would count as the newest, and be resumed from, or keep new checkpoints from being kept. Returns where it is now."""
        moved = []
        for path in entries_in(self.folder):
            match = NAME.search(path.name)
            if match and int(match[1]) > step:
                there = self.folder / LEFT / path.name
                there.parent.mkdir(exist_ok=True)
                remove(there)
                os.replace(path, there)
                moved.append(there)
        return moved

    def load_latest(self, say: Callable[[str], None] = print, world: World | None = None) -> dict[str, Any] | None:
        """The newest intact state, or None; damaged checkpoints, and folders in their place, are reported and skipped. Processes
        take the list of rank 0, and skip what one of them cannot read."""
        entries = entries_in(self.folder)
        if world:
            entries = world.gather(entries)[0]
        for path in reversed(entries):
            state, reason = None, f"{path} cannot be read by another process."
            try:
                state = load_checkpoint(path, world)
            except UsageError as error:
                reason = str(error)
            failed = state is None
            if world:
                (failed,) = world.any(failed)
            if not failed:
                return state
            older = path != entries[0]
            say(
                f"{reason} "
                + (
                    "Falling back to the previous checkpoint."
                    if older
                    else "No checkpoint is left: starting from step 0."
                )
            )
        return None


def is_checkpoint(path: Path) -> bool:
    """Whether it could be one: a file, or the folder of a sharded checkpoint."""
    return path.is_file() or (path / MANIFEST).is_file()


def load_checkpoint(path: Path, world: World | None = None) -> dict[str, Any]:
    """The state in a checkpoint. Of a sharded one it is what every process holds whole, and "sharded" is the folder from which
    each process reads its shards (`sharding.load_shards`).

    Args:
        world: its processes call this together; each checks a share of the files of a sharded checkpoint.

    Raises:
        UsageError: it is missing, is not a checkpoint of this project, or its contents do not match its checksum.
    """
    match = NAME.search(path.name)
    if match and match[3] == "sharded" and path.is_dir():
        if not _intact(path, match[2], world):
            raise UsageError(f"{path} is damaged: its files do not match their checksums.")
        return _read(path / REST) | {"sharded": str(path)}
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a checkpoint; remove it.")
    if not path.is_file() or not match:
        raise UsageError(f"{path} is not a checkpoint; give a file checkpoints/step-*.pt of a run.")
    if sha256(path)[:16] != match[2]:
        raise UsageError(f"{path} is damaged: its contents do not match the checksum in its name.")
    return _read(path)


def _intact(folder: Path, digest: str, world: World | None) -> bool:
    """Whether the files of a sharded checkpoint are those of its manifest, and that the one of its name."""
    try:
        known: dict[str, str] = {}
        if sha256(folder / MANIFEST)[:16] == digest:
            known = json.loads((folder / MANIFEST).read_text())
        rank, size = (world.rank, world.size) if world else (0, 1)
        mine = sorted(known)[rank::size]
        good = bool(known) and all(sha256(folder / name) == known[name] for name in mine)
    except OSError:
        good = False
    return not world.any(not good)[0] if world else good


def _read(path: Path) -> dict[str, Any]:
    # Memory-mapped: otherwise a large run's state would be in memory twice while loading.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
