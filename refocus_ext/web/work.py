"""One thread does all the work of the page, one thing at a time; whoever asked for it hears how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Event
from typing import TypeVar

T = TypeVar("T")
Tell = Callable[[T], None]
END = object()


class NobodyListens(BaseException):
    """Ends work whose listener has gone."""


class Worker:
    """Runs work in its own thread: torch keeps a pool of threads for every thread that calls it."""

    def __init__(self) -> None:
        self._pool, self._closed = ThreadPoolExecutor(1, "work"), Event()

    def steps(self, work: Callable[[Tell[T]], None]) -> Iterator[T]:
        """Runs `work(tell)` and yields what it tells while it runs; raises what it raises.

        If the iterator is closed, the work ends at what it tells next, before other work begins.
        """
        told: Queue[object] = Queue()
        gone = Event()

        def tell(value: T) -> None:
            if gone.is_set() or self._closed.is_set():
                raise NobodyListens
            told.put(value)

        def run() -> None:
            try:
                work(tell)
            finally:
                told.put(END)

        job = self._pool.submit(run)
        try:
            while (value := told.get()) is not END:
                yield value  # type: ignore[misc]  # only `tell` and END put values there
            job.result()
        finally:
            gone.set()  # the one thread takes other work when this has ended; waiting for it here would stop the whole page
            job.cancel()

    def close(self) -> None:
        """Ends the work at what it tells next, and takes no more."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
