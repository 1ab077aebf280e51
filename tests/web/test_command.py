"""`web` refuses with one sentence what it can see at once, before gradio is imported."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import pytest
from pages import free_port, write_students
from runs import parsed, run_main

from refocus_ext.web import command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with students, on a machine with gradio."""
    monkeypatch.chdir(tmp_path)
    write_students(tmp_path)
    monkeypatch.setattr(command, "check_gradio", lambda: None)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    loaded = "gradio" in sys.modules
    assert run_main("web", *words) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and ("gradio" in sys.modules) is loaded
    return error


def test_without_students_it_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no finished runs/distill-*; train a student with `bash run.sh distill`, or give --students" in refusal(
        capsys
    )
    assert "--students: /nowhere does not exist" in refusal(capsys, "--students", "/nowhere")
    assert "--tokenizer: /nowhere does not exist" in refusal(capsys, "--tokenizer", "/nowhere")


def test_a_port_in_use_and_one_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        error = refusal(capsys, "--port", str(port))
        assert f"--port {port} cannot be used (Address already in use); choose another one, such as --port" in error
    assert "--port 70000 is no port; choose one from 1024 to 65535" in refusal(capsys, "--port", "70000")


def test_gradio_is_named_where_it_is_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    assert f"`{sys.executable} -m pip install 'gradio>=" in refusal(capsys)


def test_what_is_chosen_is_offered(here: Path) -> None:
    models = command.check_options(parsed("web", "--device", "cpu", "--port", str(free_port())))
    assert sorted(models.students) == ["distill-a", "distill-b"] and models.coders == list(models.students)
