"""One thing at a time, told while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from refocus_ext.web.work import NobodyListens, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def tell_once(tell: Callable[[int], None]) -> None:
    tell(7)


def test_it_is_told_while_the_work_runs(worker: Worker) -> None:
    go = threading.Event()

    def work(tell: Callable[[int], None]) -> None:
        tell(1)
        assert go.wait(10)
        tell(2)

    told = worker.steps(work)
    assert next(told) == 1, "before the work goes on"
    go.set()
    assert list(told) == [2]


def test_what_is_raised_comes_after_what_was_told(worker: Worker) -> None:
    def work(tell: Callable[[int], None]) -> None:
        tell(1)
        raise KeyError("x")

    told = worker.steps(work)
    assert next(told) == 1
    with pytest.raises(KeyError):
        next(told)
    assert list(worker.steps(tell_once)) == [7], "and the next work is done"


def test_two_never_work_at_once(worker: Worker) -> None:
    busy, most = 0, 0

    def work(tell: Callable[[int], None]) -> None:
        nonlocal busy, most
        for step in range(50):
            busy += 1
            most = max(most, busy)
            tell(step)
            busy -= 1

    threads = [threading.Thread(target=lambda: list(worker.steps(work))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_work_without_a_listener_ends_before_other_work(worker: Worker) -> None:
    steps: list[int] = []
    closed = threading.Event()

    def work(tell: Callable[[int], None]) -> None:
        tell(0)
        assert closed.wait(10)
        for step in range(1, 100):
            tell(step)
            steps.append(step)

    told = worker.steps(work)
    assert next(told) == 0
    told.close()  # type: ignore[attr-defined]  # on the thread that serves everybody: it must not wait
    closed.set()
    assert not steps and list(worker.steps(tell_once)) == [7]


def test_a_closed_worker_ends_its_work_and_takes_no_more() -> None:
    worker, closed = Worker(), threading.Event()

    def work(tell: Callable[[int], None]) -> None:
        tell(0)
        assert closed.wait(10)
        while True:
            tell(1)

    told = worker.steps(work)
    assert next(told) == 0
    worker.close()
    closed.set()
    with pytest.raises(NobodyListens):
        next(told)
    with pytest.raises(RuntimeError):
        next(worker.steps(tell_once))
