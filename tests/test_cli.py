"""The command line: instant help, suggestions, and one clear sentence with exit code 2 for bad input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_images
from runs import run_main

from refocus_ext.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("argv", [[], ["help"], ["tokenizer", "--help"], ["help", "tokenizer"], ["test", "--help"]])
def test_help_needs_no_torch_and_no_time(argv: list[str]) -> None:
    script = f"""
import sys
from refocus_ext.commands import main
try:
    main({argv!r})
except SystemExit:
    pass
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert time.monotonic() - began < 5


def test_the_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main() == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", out, flags=re.M) for name in [*COMMANDS, "test"])


def test_help_gives_unit_and_default_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokenizer", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "radius of the widest PSF (pixels; default: demo 6, others 12)" in out
    assert "--seed" in out and "--dry-run" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tokeniser"], "did you mean 'tokenizer'?"),
        (["tokenizer", "--bacth-size", "8"], "did you mean --batch-size?"),
        (["tokenizer", "--batch", "8"], "there is no option '--batch'"),
        (["tokenizer", "oops"], "'oops' was not expected here"),
        (["tokenizer", "--steps", "0"], "0 is not greater than 0"),
        (["tokenizer", "--steps", "many"], "invalid int value: 'many'"),
        (["tokenizer", "--blur", "box"], "invalid choice: 'box'"),
    ],
)
def test_wrong_usage(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(*argv) == 2
    assert words in sentence(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "/nowhere is not a folder"),
        (["--focus-states", "4"], "4 focus states would decimate"),
        (["--image-size", "70"], "image_size 70 is no multiple of"),
        (["--rho-max", "400"], "reaches 400 px to each side"),
        (["--batch-size", "1000"], "--batch-size 1000 is larger than the data set of"),
        (["--patch-nums", "1,2,4,3"], "must rise and end at image size / 16 = 4; give --patch-nums"),
        (["--ch", "40"], "--ch 40 is no multiple of 32"),
        (["--steps", "10", "--warm-autoencoder", "10"], "leaves no step of --steps 10 with quantization"),
        (["--resume", "nothing.pt"], "neither auto nor never nor a checkpoint file"),
        (["--device", "cuda:77"], "--device cuda:77 is not available"),
        (["--noise-min", "0.5"], "noise_min <= noise_max"),
    ],
)
def test_bad_input_before_any_work(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run_main("tokenizer", "--preset", "demo", "--out", str(out), *options) == 2
    error = sentence(capsys)
    assert words in error and len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_bad_folders_before_any_work(image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(*words: str) -> str:
        assert (
            run_main("tokenizer", "--preset", "demo", "--data", str(image_tree), "--out", str(tmp_path / "run"), *words)
            == 2
        )
        assert not (tmp_path / "run").exists()
        return sentence(capsys)

    shutil.rmtree(image_tree / "val" / "dog")
    (image_tree / "val" / "bird").mkdir()
    write_images(image_tree / "val" / "bird", 1)
    assert "val/ has the class bird, which train/ has not" in attempt()
    shutil.rmtree(image_tree / "val")
    assert "has no val/ folder" in attempt()
    shutil.rmtree(image_tree / "train")
    assert "has no train/ folder" in attempt()


def test_another_configuration_in_out_is_refused(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text('{"identity": {"lr": 5}}')
    words = ["--preset", "demo", "--data", str(image_tree), "--out", str(out)]
    assert run_main("tokenizer", *words) == 2
    assert "choose another --out, or --resume never" in sentence(capsys)
    assert (out / "config.json").read_text() == '{"identity": {"lr": 5}}'


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokenizer", "--dry-run", "--out", str(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert "focus states (disk): 1: 6 px" in out and "upstream: " in out
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ run.sh


def shell(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "run.sh"), *argv], capture_output=True, text=True, env=os.environ | environment
    )


def test_run_sh_helps_with_a_bare_interpreter(tmp_path: Path) -> None:
    result = shell(PATH="/usr/bin:/bin:" + str(Path(sys.executable).parent), HOME=str(tmp_path))
    assert result.returncode == 0 and "usage: bash run.sh COMMAND" in result.stdout


def test_run_sh_tells_wrong_usage_before_it_installs() -> None:
    for argv in (["tokenzier"], ["tokenizer", "--stps", "3"], ["distill"]):
        result = shell(*argv, REFOCUS_PYTHON=sys.executable)
        assert result.returncode == 2 and "installing" not in result.stderr


def test_run_sh_names_what_a_chosen_interpreter_lacks(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    result = shell("tokenizer", REFOCUS_PYTHON=str(tmp_path / "bare" / "bin" / "python"))
    assert result.returncode == 1 and re.search(r"lacks torch, torchvision.*; install them, or unset it", result.stderr)


def test_environment_check_sees_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    from refocus_ext import environment

    assert environment.lacking("test") == []
    monkeypatch.setattr(environment, "_requirements", lambda group: ["torch>=999", "no-such-package>=1"])
    assert [lack.split(" ")[0] for lack in environment.lacking()] == ["torch>=999", "no-such-package"]
