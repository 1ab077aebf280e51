"""Where a run is shown: the same numbers everywhere, the same bits, and no board that can stop a run."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, parsed, run_main

from refocus_ext.engine.boards import open_board
from refocus_ext.engine.wandb_board import check_wandb
from refocus_ext.errors import UsageError
from refocus_ext.tokenizer.training import TokenizerTraining

FAKE = '''
"""What the board calls of wandb: `calls` lists it, `fails` names the call that raises."""
calls, fails = [], ""

def note(call, /, *given, **named):
    calls.append((call, given, named))
    if call == fails:
        raise RuntimeError(f"{call} is\\nbroken")

class Settings:
    def __init__(self, *, console):
        self.console = console

class Image:
    def __init__(self, data_or_path):
        self.shape = data_or_path.shape

class Run:
    def log(self, data, step=None, commit=None):
        note("log", data, step=step)
    def define_metric(self, name, step_metric=None):
        note("define_metric", name, step_metric)
    def finish(self, exit_code=None):
        note("finish")

def init(*, dir, id, resume, config, allow_val_change, settings, mode=None, project=None, name=None):
    note("init", dir=dir, id=id, resume=resume, config=config, mode=mode, project=project, name=name, console=settings.console)
    return Run()
'''


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package in the place of W&B's, as far as the board calls it."""
    folder = tmp_path / "packages" / "wandb"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    import wandb

    yield wandb
    sys.modules.pop("wandb", None)


def named(wandb: Any, call: str) -> list[Any]:
    return [entry for entry in wandb.calls if entry[0] == call]


def logged(wandb: Any) -> list[dict[str, Any]]:
    return [given[0] for _, given, _ in named(wandb, "log")]


# ------------------------------------------------------------------------------------------------ boards


def test_wandb_is_offline_in_the_run_folder(wandb: Any, tmp_path: Path) -> None:
    board = open_board("wandb", tmp_path, 0, {"lr": 0.1})
    ((_, _, init),) = named(wandb, "init")
    assert (init["mode"], init["dir"], init["config"]) == ("offline", str(tmp_path), {"lr": 0.1})
    assert (init["project"], init["name"], init["console"]) == ("refocus-var", tmp_path.name, "off")
    board.close()
    assert wandb.calls[-1][0] == "finish"


def test_the_environment_decides_over_mode_project_and_name(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.setenv(name, "online")
    open_board("wandb", tmp_path, 0, {})
    ((_, _, init),) = named(wandb, "init")
    assert init["mode"] is init["project"] is init["name"] is None, "arguments would win over the environment"


def test_a_resumed_run_is_the_same_run_and_another_is_another(wandb: Any, tmp_path: Path) -> None:
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        open_board("wandb", tmp_path / folder, 0, {}).close()
    first, again, other = (init["id"] for _, _, init in named(wandb, "init"))
    assert first == again != other
    assert all(init["resume"] == "allow" for _, _, init in named(wandb, "init"))


def test_a_repeated_step_is_no_earlier_step_to_wandb(wandb: Any, tmp_path: Path) -> None:
    """W&B drops records whose step is below its last; so it is told no step, but draws over one."""
    board = open_board("wandb", tmp_path, 0, {})
    board.scalars(7, {"train/loss": 1.0})
    board.scalars(3, {"train/loss": 2.0})
    assert logged(wandb) == [{"train/loss": 1.0, "step": 7}, {"train/loss": 2.0, "step": 3}]
    assert all(given["step"] is None for _, _, given in named(wandb, "log"))
    assert ("*", "step") in [given for _, given, _ in named(wandb, "define_metric")]


def test_pictures_are_images(wandb: Any, tmp_path: Path) -> None:
    open_board("wandb", tmp_path, 0, {}).image(5, "samples", np.zeros((4, 6, 3), np.uint8))
    (record,) = logged(wandb)
    assert isinstance(record["samples"], wandb.Image) and record["samples"].shape == (4, 6, 3) and record["step"] == 5


@pytest.mark.parametrize("call", ["init", "define_metric", "log", "finish"])
def test_a_failing_wandb_is_one_line_and_the_last_call(
    call: str, wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fails = call
    board = open_board("wandb", tmp_path, 0, {})
    for step in (1, 2, 3):
        board.scalars(step, {"loss": 1.0})
        board.image(step, "picture", np.zeros((1, 1, 3), np.uint8))
    board.close()
    assert len(named(wandb, call)) == 1 and wandb.calls[-1][0] == call
    assert capsys.readouterr().err == (
        f"warning: Weights & Biases failed ({call} is broken); the run goes on without it\n"
    )
    assert board.where() == ""


def test_none_shows_nothing(tmp_path: Path) -> None:
    board = open_board("none", tmp_path, 0, {})
    board.scalars(1, {"loss": 1.0})
    board.close()
    assert not list(tmp_path.iterdir()) and board.where() == ""


# ------------------------------------------------------------------------------------------------ the package


def test_a_missing_package_is_one_sentence_before_any_work(
    tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("tokenizer", *TINY, "--data", str(image_tree), "--out", str(tmp_path / "run"), "--log", "wandb")
    assert run_main(*words) == 2
    error = capsys.readouterr().err
    assert error == (
        f"refocus: --log wandb needs the package wandb; `{sys.executable} -m pip install wandb` installs it, or omit --log.\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_named_wandb_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline runs of other projects leave one in the current folder, which Python can import."""
    real = [path for path in sys.path if not (Path(path or ".") / "wandb" / "__init__.py").is_file()]
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *real])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError, match="needs the package wandb"):
        check_wandb()


def test_the_option_is_no_part_of_a_run() -> None:
    for command in ("tokenizer", "distill"):
        usual, chosen = parsed(command), parsed(command, "--log", "wandb")
        assert usual.log == "tensorboard" and chosen.log == "wandb"
        assert usual.identity() == chosen.identity() and usual.told() == chosen.told()
        assert "log" not in usual.to_dict(), "config.json is that of an earlier version"


# ------------------------------------------------------------------------------------------------ runs


def test_a_run_has_the_same_bits_wherever_it_is_shown_and_resumes_there(
    wandb: Any,
    image_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(name: str, *words: str) -> int:
        return run_main("tokenizer", *TINY, "--data", str(image_tree), "--out", str(tmp_path / name), *words)

    assert train("usual") == 0
    assert "also in TensorBoard" in capsys.readouterr().out
    real = TokenizerTraining.train_step

    def interrupted(self: TokenizerTraining, step: int, batches: Any) -> Any:
        if step == 3 and len(named(wandb, "init")) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, batches)

    monkeypatch.setattr(TokenizerTraining, "train_step", interrupted)
    assert train("shown", "--log", "wandb") == 130
    assert train("shown", "--log", "wandb") == 0
    assert "also in Weights & Biases" in capsys.readouterr().out
    monkeypatch.setattr(TokenizerTraining, "train_step", real)
    assert train("none", "--log", "none") == 0
    assert "metrics.jsonl  every step\n" in capsys.readouterr().out
    for name in ("metrics.jsonl", "vae.pth", "alias.pth"):
        assert len({(tmp_path / run / name).read_bytes() for run in ("usual", "shown", "none")}) == 1
    assert not (tmp_path / "shown" / "tensorboard").exists() and not (tmp_path / "none" / "tensorboard").exists()

    lines = [json.loads(line) for line in (tmp_path / "shown" / "metrics.jsonl").read_text().splitlines()]
    scalars = [record for record in logged(wandb) if not {"prefixes", "alias"} & record.keys()]
    assert scalars == lines, "the same names and values, each step once"
    assert {name for record in logged(wandb) for name in record} >= {"prefixes", "alias"}
    inits = [init for _, _, init in named(wandb, "init")]
    assert inits[0]["id"] == inits[1]["id"] and inits[0]["config"]["steps"] == 6
    assert len(named(wandb, "finish")) == 2


def test_training_never_sees_the_board(wandb: Any, tmp_path: Path) -> None:
    """Torch's random numbers are the same before and after every call."""
    before = torch.get_rng_state()
    board = open_board("wandb", tmp_path, 0, {})
    board.scalars(1, {"loss": 1.0})
    board.close()
    assert torch.equal(torch.get_rng_state(), before)
