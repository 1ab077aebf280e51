"""A command's result files: checked before any work, written with a clear error message on failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import save_json


def results_folder(word: str) -> Path:
    """The folder, created if it is missing.

    Raises:
        UsageError: it is a file, or cannot be made.
    """
    path = Path(word)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be a folder ({error.strerror}); choose another one.") from None
    return path


def results_file(word: str) -> Path:
    """A file in a folder that exists or can be created.

    Raises:
        UsageError: it is a folder, or its folder cannot be made or written to.
    """
    path = Path(word)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file.")
    folder = results_folder(str(path.parent))
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written (no permission in {folder}); choose another one.")
    return path


def write_numbers(path: Path, numbers: Any) -> None:
    """Writes JSON, completely or not at all.

    Raises:
        RunFailed: the file cannot be written.
    """
    try:
        save_json(path, numbers)
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}).") from error
