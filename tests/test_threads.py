"""Threads sleep while they wait only where other programs hold the cores."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from refocus_ext import threads


@pytest.mark.parametrize(
    ("runnable", "cores", "policy"),
    [
        ([1, 1, 1, 1], 2, None),
        ([3, 1, 1, 1], 2, None),
        ([2, 2, 3, 2], 2, "PASSIVE"),
        ([3, 3, 3, 3], 16, None),
        ([9] * 4, 16, "PASSIVE"),
    ],
)
def test_the_policy_follows_what_runs(
    monkeypatch: pytest.MonkeyPatch, runnable: list[int], cores: int, policy: str | None
) -> None:
    """A short peak, as of a program that starts, does not count."""
    looks = iter(runnable)
    monkeypatch.setattr(threads, "_runnable", lambda: next(looks))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(threads, "PAUSE", 0.0)
    monkeypatch.delenv(threads.POLICY, raising=False)
    threads.choose_waiting()
    assert os.environ.get(threads.POLICY) == policy
    monkeypatch.delenv(threads.POLICY, raising=False)


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.POLICY, "ACTIVE")
    monkeypatch.setattr(threads, "held_cores", lambda: 99)
    threads.choose_waiting()
    assert os.environ[threads.POLICY] == "ACTIVE"


def _spin() -> None:
    while True:
        pass


@pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="the system does not tell what runs")
def test_a_program_that_computes_is_seen() -> None:
    process = multiprocessing.get_context("fork").Process(target=_spin, daemon=True)
    process.start()
    try:
        assert threads.held_cores() >= 1
    finally:
        process.kill()
        process.join()
