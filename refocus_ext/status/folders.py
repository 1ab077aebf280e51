"""Which folders are runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

DEPTH = 3  # folders below the one that is searched


def runs_in(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder if it is a run, else the runs in it, by name; also folders that cannot be read. Runs are not searched."""
    try:
        if is_run(folder):
            yield folder
        elif depth > 0:
            inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
            for path in inner:
                yield from runs_in(path, depth - 1)
    except OSError:
        yield folder


def is_run(folder: Path) -> bool:
    """Whether it has a configuration and traces of training, or else a configuration that can only be a run's."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / "metrics.jsonl").is_file() or (folder / "checkpoints").is_dir():
        return True
    try:
        config = json.loads((folder / "config.json").read_text())
        return isinstance(config["identity"], dict)
    except (ValueError, KeyError, TypeError):
        return False
