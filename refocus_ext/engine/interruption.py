"""Ctrl-C and SIGTERM: recorded, then acted on at the end of a step by all processes together."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed

GRACE = 30  # seconds that a loader process outlives SIGTERM; torchrun kills remaining processes after the same time


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads between steps; a second one acts immediately.

    Args:
        promise: what happens next, printed to the user.
    """

    def __init__(self, promise: str = "saving at the end of this step") -> None:
        self.promise = promise
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
        print(f"\ninterrupted: {self.promise} (repeat to stop immediately)", file=sys.stderr, flush=True)

    def agreed(self, world: World) -> int:
        """The exit code if any process was interrupted: 130 after Ctrl-C, 143 after SIGTERM, otherwise 0.

        The same on every process, whichever was signalled; all processes must call it at the same point.
        """
        interrupted, terminated = world.any(self.signal == signal.SIGINT, self.signal == signal.SIGTERM)
        return 130 if interrupted else 143 if terminated else 0


def leave_signals_to_parent(_worker: int) -> None:
    """`worker_init_fn` of loaders: Ctrl-C, torchrun and schedulers signal the loader processes too, and a loader that
    dies would kill its parent before the parent has finished the step and saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # not ignored: Python's exit waits for its children


def from_loader(error: RunFailed) -> RunFailed:
    """The same error without the traceback text that a loader process adds to the message."""
    return RunFailed(str(error).split("RunFailed: ")[-1].strip())
