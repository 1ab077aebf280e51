"""A run as its folder shows it: what it is, how far it is, and whether it is running."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refocus_ext.engine.checkpoint_names import checkpoints_in, step_of
from refocus_ext.engine.life_sign import PATIENCE, Seen, look
from refocus_ext.status.records import Records, read_records

COMMANDS = ("tokenizer", "distill")

State = Literal["finished", "running", "interrupted", "no sign of life", "not begun"]


class NoRun(Exception):
    """A folder is not a run of this project, or is damaged; the message is a clause."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        steps: in all.
        checkpoint: the newest one; None without one.
        ablation: the folder of the ablation that it is a part of; None otherwise.
        now: when it was read, seconds since 1970.
    """

    path: Path
    config: dict[str, Any]
    command: str
    steps: int
    records: Records
    checkpoint: Path | None
    seen: Seen | None
    ablation: Path | None
    now: float

    @property
    def options(self) -> dict[str, Any]:
        return self.config["options"]

    @property
    def saved(self) -> int | None:
        """Steps done at the newest checkpoint."""
        return step_of(self.checkpoint) if self.checkpoint else None

    @property
    def step(self) -> int:
        """Steps done, as far as they were recorded."""
        return max(self.records.step or 0, self.saved or 0)

    @property
    def by_metrics(self) -> bool:
        """Whether it seems to run only because its metrics are fresh: runs of earlier versions leave no other sign."""
        written = self.records.written
        old = self.seen is None and "invocation" not in self.config and written is not None
        return old and not self._complete and self.now - (written or 0.0) < PATIENCE

    @property
    def _complete(self) -> bool:
        if self.saved is not None:
            return self.saved >= self.steps
        return self.step >= self.steps and bool(self.config.get("weights"))

    @property
    def state(self) -> State:
        life = self.seen.life(self.now) if self.seen else "dead"
        if life == "alive" or self.by_metrics:
            return "running"
        if self._complete:
            return "finished"
        if life == "silent":
            return "no sign of life"
        return "interrupted" if self.step else "not begun"

    @property
    def killed(self) -> bool:
        """Whether it left its life sign behind although its process is not there any more."""
        return self.seen is not None and self.seen.life(self.now) == "dead"


def read_run(path: Path, now: float) -> Run:
    """Reads a run folder; writes nothing.

    Raises:
        NoRun: it is damaged, or something else.
    """
    try:
        config = json.loads((path / "config.json").read_text())
        identity, options = config["identity"], config["options"]
        steps = int(identity.get("steps") or options["steps"])
        command = str(config.get("command") or ("distill" if "student" in config else "tokenizer"))
        if command not in COMMANDS or not isinstance(options, dict):
            raise NoRun(f"config.json is that of `{command}`")
        checkpoints = checkpoints_in(path / "checkpoints")
        return Run(
            path=path,
            config=config,
            command=command,
            steps=steps,
            records=read_records(path),
            checkpoint=checkpoints[-1] if checkpoints else None,
            seen=look(path),
            ablation=path.parent if (path.absolute().parent / "ablate.json").is_file() else None,
            now=now,
        )
    except FileNotFoundError:
        raise NoRun("it has no config.json") from None
    except OSError as error:
        raise NoRun(f"it cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NoRun("its config.json is damaged or not that of a run") from None
