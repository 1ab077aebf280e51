"""The command line of this process, for messages that give it back with a change."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_words: list[str] = []


def remember(words: Sequence[str]) -> None:
    """The command's name and its options, as they were typed."""
    _words[:] = words


def again(changes: Mapping[str, str | None] | None = None) -> str:
    """The same command with some options changed.

    Args:
        changes: flag -> value, None for a flag without one.

    `--resume` is left out of it, as it is where a run begins; the line then goes on from the newest checkpoint.

    >>> remember(["tokenizer", "--accumulate=2", "--data", "my pictures", "--resume", "never"])
    >>> again({"--accumulate": "4", "--grad-checkpoint": None})
    "bash run.sh tokenizer --data 'my pictures' --accumulate 4 --grad-checkpoint"
    """
    changes = changes or {}
    kept: list[str] = []
    words = iter(_without_resume(_words))
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag not in changes:
            kept.append(word)
        elif changes[flag] is not None and not equals:
            next(words, None)
    added = [word for flag, value in changes.items() for word in (flag, value) if word is not None]
    return _line([*kept, *added], ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR"))


def record(command: str) -> dict[str, Any]:
    """What config.json keeps of the command line: the line that resumes the run, and the folder in which it was typed; nothing
    where no command line began this run of `command`.

    `--resume` is left out of it: the word that began the run would begin it again.

    >>> remember(["tokenizer", "--resume", "never", "--steps", "9"])
    >>> record("tokenizer")["invocation"]["line"]
    'bash run.sh tokenizer --steps 9'
    """
    if _words[:1] != [command]:
        return {}
    # On several nodes a job's script starts the command on each: its words are what goes back there.
    line = _line(_without_resume(_words), () if "NNODES" in os.environ else ("NPROC",))
    return {"invocation": {"line": line, "folder": os.getcwd()}}


def to_resume() -> str:
    """How an interrupted run goes on: with `--resume never`, or from a given file, the same command would begin again.

    >>> remember(["distill", "--depth", "8"])
    >>> to_resume()
    'rerun the same command to resume'
    >>> remember(["distill", "--depth", "8", "--resume=never"])
    >>> to_resume()
    'to resume: bash run.sh distill --depth 8'
    """
    return "rerun the same command to resume" if _without_resume(_words) == _words else f"to resume: {again()}"


def requeued(words: Sequence[str]) -> list[str]:
    """The words of a command, without `--resume` where SLURM has put its job into the queue again: the run has begun."""
    again_in_queue = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return _without_resume(words) if again_in_queue else list(words)


def _without_resume(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--resume":
            next(rest, None)
        elif not word.startswith("--resume="):
            kept.append(word)
    return kept


def _line(words: Sequence[str], names: Sequence[str]) -> str:
    """Args: names: the variables that go in front of it, where there are several processes."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    where = [f"{name}={shlex.quote(os.environ[name])}" for name in names if several and name in os.environ]
    return " ".join([*where, "bash run.sh", shlex.join(words)])
