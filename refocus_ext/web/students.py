"""Which students and tokenizers the page offers, by name. Reads no weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from refocus_ext.errors import UsageError
from refocus_ext.sampling.student_files import distill_runs, find_files, is_unfinished


def find_students(words: Sequence[str]) -> dict[str, Path]:
    """The students that `words` name: each one itself, or those in a folder. Without words: runs/distill-* with weights, those
    whose training has ended first, then the newest first.

    Raises:
        UsageError: a word names no student.
    """
    if not words:
        return by_name(sorted(filter(is_student, reversed(distill_runs())), key=is_unfinished))
    return by_name(path for word in words for path in _named_by(Path(word)))


def _named_by(path: Path) -> list[Path]:
    """The student, or those in a folder of students.

    Raises:
        UsageError: there is none; says why `path` itself is none.
    """
    try:
        find_files(path)
    except UsageError:
        inside = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        students = [entry for entry in inside if is_student(entry)]
        if students:
            return students
        raise
    return [path]


def is_student(path: Path) -> bool:
    """Whether all of its files are there; none of them is read."""
    with contextlib.suppress(UsageError):
        find_files(path)
        return True
    return False


def find_tokenizer(word: str) -> dict[str, Path]:
    """The tokenizer by name.

    Raises:
        UsageError: there is nothing of that name.
    """
    if not Path(word).exists():
        raise UsageError(
            f"{word} does not exist; give the run folder of `bash run.sh tokenizer`, or a file of its weights."
        )
    return by_name([Path(word)])


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Each path once, by its last part; by the whole path where two would have the same name.

    >>> list(by_name([Path("runs/a"), Path("b"), Path("b"), Path("old/a")]))
    ['a', 'b', 'old/a']
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path not in found.values():
            name = path.name or str(path.resolve())
            found[str(path) if name in found else name] = path
    return found
