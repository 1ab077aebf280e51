"""Checkpoints to resume from: atomic, checksummed by name, with a fallback to the previous one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import remove_torn, save_tensors, sha256

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt$")


class CheckpointStore(Protocol):
    """Where a run keeps the states it can resume from. `checkpoints_of` chooses the store of a run."""

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Saves the state after `step` steps, completely or not at all."""
        ...

    def load_latest(self, say: Callable[[str], None] = print) -> dict[str, Any] | None:
        """The newest intact state, or None."""
        ...

    def newest_step(self) -> int | None:
        """Steps done at the newest checkpoint."""
        ...

    def paths(self) -> list[Path]:
        """The checkpoint files, oldest first; `load_checkpoint` reads them."""
        ...


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
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        return [path for path in self._entries() if path.is_file()]

    def _entries(self) -> list[Path]:
        """Everything named like a checkpoint, oldest first; this may include a folder."""
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.search(path.name))

    def newest_step(self) -> int | None:
        """Steps done at the newest checkpoint, by its name; None without one."""
        steps = [int(match[1]) for path in self.paths() if (match := _NAME.search(path.name))]
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
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self, say: Callable[[str], None] = print) -> dict[str, Any] | None:
        """The newest intact state, or None; damaged files, and folders in their place, are reported and skipped."""
        entries = self._entries()
        for path in reversed(entries):
            try:
                return load_checkpoint(path)
            except UsageError as error:
                older = path != entries[0]
                say(
                    f"{error} "
                    + (
                        "Falling back to the previous checkpoint."
                        if older
                        else "No checkpoint is left: starting from step 0."
                    )
                )
        return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file.

    Raises:
        UsageError: it is missing, is not a checkpoint of this project, or its contents do not match its checksum.
    """
    match = _NAME.search(path.name)
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a checkpoint; remove it.")
    if not path.is_file() or not match:
        raise UsageError(f"{path} is not a checkpoint; give a file checkpoints/step-*.pt of a run.")
    if sha256(path)[:16] != match[2]:
        raise UsageError(f"{path} is damaged: its contents do not match the checksum in its name.")
    # Memory-mapped: otherwise a large run's state would be in memory twice while loading.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
