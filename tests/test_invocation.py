"""The command line that a run keeps: the one that continues it."""

from __future__ import annotations

import os

import pytest

from refocus_ext import invocation


def line() -> str:
    return str(invocation.record("tokenizer")["invocation"]["line"])


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocation, "_words", [])
    for name in ("WORLD_SIZE", "NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("resume", [["--resume", "never"], ["--resume=never"], ["--resume", "step-1.pt"], []])
def test_it_leaves_out_what_would_begin_the_run_again(resume: list[str]) -> None:
    invocation.remember(["tokenizer", *resume, "--data", "my pictures", "--extend"])
    assert line() == "bash run.sh tokenizer --data 'my pictures' --extend"
    assert invocation.record("tokenizer")["invocation"]["folder"] == os.getcwd()


def test_a_requeued_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM starts the same words again; with `--resume never` the run would begin again at every time limit."""
    words = ["tokenizer", "--resume", "never", "--steps", "9"]
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert invocation.requeued(words) == words
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert invocation.requeued(words) == ["tokenizer", "--steps", "9"]
    assert invocation.requeued(words[3:]) == words[3:]


def test_a_run_that_no_command_line_began_has_none() -> None:
    assert invocation.record("tokenizer") == {}
    invocation.remember(["ablate", "--demo"])
    assert invocation.record("tokenizer") == {}


def test_several_processes_are_started_again_but_not_one_node_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    invocation.remember(["tokenizer"])
    monkeypatch.setenv("NPROC", "8")
    assert line() == "bash run.sh tokenizer", "NPROC had no effect"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert line() == "NPROC=8 bash run.sh tokenizer"
    monkeypatch.setenv("NNODES", "2")
    assert line() == "bash run.sh tokenizer"
    assert invocation.again() == "NPROC=8 NNODES=2 MASTER_ADDR=node1 bash run.sh tokenizer"
