"""Times parts in turns: a turn is some uncounted runs and then counted ones, each between two waits for the device.

Parts take turns so that a card that heats up or slows down slows all of them. A part that fails leaves the others alone.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.memory.watch import is_out_of_memory
from refocus_ext.evidence.bench.clock import now


@dataclass(frozen=True)
class Part:
    """Something that is timed.

    Args:
        name: what the report calls it.
        run: one run.
        ready: entered around each turn, outside of what is timed; patches, say.
        check: is given the result of each uncounted run and raises if the run did not do its work.
        images, tokens, flops: of one run, for rates and MFU; 0 leaves them out.
        holds: bytes that only this part keeps between its turns; they are taken off the peaks of the others.
        settle: further uncounted runs before its first turn, for what compiles itself in more than one run.
        missing: why the part cannot be run at all, or empty.
    """

    name: str
    run: Callable[[], Any]
    ready: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    check: Callable[[Any], None] = lambda _: None
    images: int = 0
    tokens: int = 0
    flops: float = 0.0
    holds: Callable[[], int] = lambda: 0
    settle: int = 0
    missing: str = ""


@dataclass(frozen=True)
class Pace:
    """How often parts run: at most `turns` turns of `warm` uncounted and `runs` counted runs; a turn ends early once it has
    taken `turn_seconds`, after one counted run at least."""

    turns: int = 3
    warm: int = 2
    runs: int = 5
    turn_seconds: float = 4.0


@dataclass
class Row:
    """What was measured of a part: seconds of its counted runs, and its largest peak of memory in bytes (0: not known)."""

    part: Part
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Seconds that a tenth of the runs stayed below, and that a tenth exceeded."""
        if len(self.seconds) < 2:
            return self.median, self.median
        tenths = statistics.quantiles(self.seconds, n=10, method="inclusive")
        return tenths[0], tenths[-1]


def take_turns(
    parts: Sequence[Part], pace: Pace, device: torch.device, until: float, stop: Callable[[], bool] = lambda: False
) -> list[Row]:
    """Rows in the order of the parts, without those that `stop` left unmeasured.

    Args:
        until: the `time.monotonic` after which no turn begins, except the first of a part.
        stop: asked before each turn.
    """
    rows = [Row(part, failed=part.missing) for part in parts]
    for _ in range(pace.turns):
        for row in rows:
            late = time.monotonic() > until and row.seconds
            if not (row.failed or late or stop()):
                _turn(row, pace, device)
    held = {row.part.name: row.part.holds() for row in rows}
    for row in rows:
        row.peak = max(0, row.peak - sum(held.values()) + held[row.part.name])
    return [row for row in rows if row.seconds or row.failed]


def _turn(row: Row, pace: Pace, device: torch.device) -> None:
    """One turn of a part; an error is noted in its row, and its memory is freed."""
    part = row.part
    try:
        with part.ready():
            for _ in range(pace.warm + (0 if row.seconds else part.settle)):
                part.check(part.run())
            began = time.monotonic()
            for number in range(pace.runs):
                if number and time.monotonic() - began > pace.turn_seconds:
                    break
                _counted(row, device)
    except Exception as error:
        row.failed, row.seconds = in_a_line(error), []
    if row.failed:
        free(device)


def _counted(row: Row, device: torch.device) -> None:
    kind = kind_of(device)
    kind.memory_in_use(device)  # the peak counts from here
    began = now(device)
    row.part.run()
    row.seconds.append(now(device) - began)
    row.peak = max(row.peak, kind.peak_memory(device))


def free(device: torch.device) -> None:
    """Gives back what is no longer referenced."""
    gc.collect()
    kind_of(device).free_unused()


def in_a_line(error: BaseException) -> str:
    """'out of memory', or the first line of an error with its type."""
    if is_out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
