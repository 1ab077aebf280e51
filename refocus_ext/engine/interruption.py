"""Ctrl-C and SIGTERM: noted, and acted on at the end of a step, by all processes together."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed

GRACE = 30  # seconds that a loader process outlives SIGTERM; torchrun kills what is left after as many


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads between steps; a second one acts at once.

    Args:
        promise: what the user is told will happen now.
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
        print(f"\ninterrupted: {self.promise} (once more to stop at once)", file=sys.stderr, flush=True)

    def agreed(self, world: World) -> int:
        """The exit code of an interruption of any process: 130 after Ctrl-C, 143 after SIGTERM, 0 without one.

        The same on every process, whichever was signalled; all must call it at the same place.
        """
        interrupted, terminated = world.any(self.signal == signal.SIGINT, self.signal == signal.SIGTERM)
        return 130 if interrupted else 143 if terminated else 0


def leave_signals_to_parent(_worker: int) -> None:
    """`worker_init_fn` of loaders: Ctrl-C, torchrun and schedulers signal the loader processes as well, and a loader that
    dies of it takes the process down that wanted to finish its step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # never ignored: Python's exit waits for its children


def from_loader(error: RunFailed) -> RunFailed:
    """The same error in its own words: one raised in a loader process arrives with that process's traceback in them."""
    return RunFailed(str(error).split("RunFailed: ")[-1].strip())
