"""Files that are either complete or absent: written to a temporary file, flushed, renamed. Imports torch only to write tensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refocus_ext.errors import RunFailed


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success the file is fsynced and renamed to `path`, otherwise removed.

    Raises:
        IsADirectoryError: immediately, if `path` is a folder, which a rename could not replace.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"a folder is in the place of the file {path.name}", str(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)


def remove_torn(folder: Path) -> None:
    """Removes the temporary files and folders of killed writers from a folder that has one writer."""
    for torn in folder.glob(".*.part"):
        remove(torn)


def remove(path: Path) -> None:
    """Removes a file, or a folder with its files; it may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish_folder(draft: Path, path: Path) -> None:
    """Renames a folder whose files are complete and on the disk.

    Raises:
        OSError: it cannot be written, or another folder is in its place.
    """
    sync_folder(draft)
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_file(source: Path, path: Path) -> None:
    """Copies a file, completely or not at all.

    Raises:
        RunFailed: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside:
            shutil.copyfile(source, beside)
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}).") from error


def save_json(path: Path, value: Any) -> None:
    with written_beside(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, value: Any) -> None:
    """torch.save of tensors and plain values, completely or not at all; equal values give equal bytes."""
    import torch

    with written_beside(path) as beside, open(beside, "wb") as file:
        torch.save(value, file)  # given a path, torch.save would write its name into the file


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
