"""The two errors with which a command ends early without a bug."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UsageError(ValueError):
    """Bad input: one sentence that names the value, the limit and what to do. The command line exits with 2.

    A library's message is about the thing ("the folder x holds no images"); a command adds its option with `named`, or with
    `offering` where the option is the way out.
    """


class RunFailed(RuntimeError):
    """The work failed for a reason the user can act on (disk full, too many broken images). Exits with 1."""


@contextlib.contextmanager
def named(option: str) -> Iterator[None]:
    """Prefixes the messages of library errors inside with the option that gave the bad value.

    >>> with named("--data"):
    ...     raise UsageError("the folder x holds no images.")
    Traceback (most recent call last):
    refocus_ext.errors.UsageError: --data: the folder x holds no images.
    """
    try:
        yield
    except (UsageError, RunFailed) as error:
        error.args = (f"{option}: {error}",)
        raise


@contextlib.contextmanager
def offering(options: str, kind: type[Exception] = UsageError) -> Iterator[None]:
    """Appends to the messages of library errors of a kind inside the options that are their way out.

    >>> with offering("--val-share 0.05"):
    ...     raise UsageError("the folder x has no val/ folder; hold out a share of its images.")
    Traceback (most recent call last):
    refocus_ext.errors.UsageError: the folder x has no val/ folder; hold out a share of its images (--val-share 0.05).
    """
    try:
        yield
    except kind as error:
        error.args = (f"{str(error).removesuffix('.')} ({options}).",)
        raise
