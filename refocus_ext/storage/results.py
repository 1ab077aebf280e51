"""A command's result files: checked before any work, written with a clear error message on failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import save_json


def results_folder(word: str) -> Path:
    """The folder, which may be made later, when there are results.

    Raises:
        UsageError: it is a file, or cannot be made or written to.
    """
    path = Path(word)
    _refuse_folder(path, path)
    return path


def results_file(word: str) -> Path:
    """A file in a folder that exists or can be made later.

    Raises:
        UsageError: it is a folder, or its folder cannot be made or written to.
    """
    path = Path(word)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file.")
    _refuse_folder(path.parent, path)
    return path


def _refuse_folder(folder: Path, asked: Path) -> None:
    """Raises UsageError about `asked` if `folder` cannot be a folder to write to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{folder} cannot be a folder ({there} is a file); choose another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{asked} cannot be written (no permission in {there}); choose another one.")


def write_numbers(path: Path, numbers: Any) -> None:
    """Writes JSON, completely or not at all, in a folder that is made if it is missing.

    Raises:
        RunFailed: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, numbers)
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}).") from error
