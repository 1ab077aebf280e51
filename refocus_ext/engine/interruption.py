"""Ctrl-C and the signals of schedulers: recorded, then acted on at the end of a step by all processes together."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed

# In the order in which they win if several arrive. Schedulers warn with SIGTERM (preemption), or SIGUSR1, SIGUSR2 or SIGHUP
# (before the time limit, as the job asked).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
WARNINGS = SIGNALS[2:]  # repeated, they still only warn
GRACE = 30  # seconds that a loader process outlives SIGTERM
ECHO = 1.0  # seconds within which a second signal is the first one again, by way of the launcher


class Interruption:
    """Turns the first signal into a flag that the loop reads between steps; a second SIGINT or SIGTERM acts immediately.

    Args:
        promise: what happens next, printed to the user.
    """

    def __init__(self, promise: str = "saving at the end of this step") -> None:
        self.promise = promise
        self.signal: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in SIGNALS:
            if number in WARNINGS and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup asked for that
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = number, now
            if os.environ.get("LOCAL_RANK", "0") == "0":  # the launcher passes it to every process of a machine
                print(f"\ninterrupted: {self.promise} (repeat to stop immediately)", file=sys.stderr, flush=True)
        elif number not in WARNINGS and now - self._at > ECHO:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def flags(self) -> list[float]:
        """1 for the signal that has arrived here, otherwise 0, in the order of `SIGNALS`."""
        return [float(self.signal == number) for number in SIGNALS]

    @staticmethod
    def code(flags: Sequence[float]) -> int:
        """The exit code of the first flag that is not 0: 128 + the signal's number (130 after Ctrl-C, 143 SIGTERM, 138
        SIGUSR1, 140 SIGUSR2, 129 SIGHUP), otherwise 0."""
        return next((128 + number for number, there in zip(SIGNALS, flags, strict=True) if there), 0)

    def agreed(self, world: World) -> int:
        """The exit code if any process was interrupted, otherwise 0.

        The same on every process, whichever was signalled; all processes must call it at the same point.
        """
        return self.code(world.any(*(bool(flag) for flag in self.flags())))


def leave_signals_to_parent(_worker: int) -> None:
    """`worker_init_fn` of loaders: Ctrl-C, launchers and schedulers signal the loader processes too, and a loader that
    dies would kill its parent before the parent has finished the step and saved."""
    for number in (signal.SIGINT, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # not ignored: Python's exit waits for its children


def from_loader(error: RunFailed) -> RunFailed:
    """The same error without the traceback text that a loader process adds to the message."""
    return RunFailed(str(error).split("RunFailed: ")[-1].strip())
