"""The checkpoints in a folder, by their names. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.(pt|sharded)$")  # steps done, the start of the sha256
MANIFEST = "manifest.json"  # of a sharded checkpoint: the sha256 of each file


def entries_in(folder: Path) -> list[Path]:
    """Everything named like a checkpoint, oldest first; this may include a folder in the place of a file."""
    return sorted(path for path in folder.glob("step-*") if NAME.search(path.name))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return [path for path in entries_in(folder) if path.is_dir() == (path.suffix == ".sharded")]


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint, by its name."""
    match = NAME.search(checkpoint.name)
    assert match is not None
    return int(match[1])
