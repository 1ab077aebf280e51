"""The command line: instant help, suggestions, and one clear sentence with exit code 2 for bad input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import write_images
from runs import run_main

from refocus_ext.commands import COMMANDS, OF_RUN_SH

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
    assert all(re.search(rf"^  {name} ", out, flags=re.M) for name in [*COMMANDS, *OF_RUN_SH])


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


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("line", "nproc", "answer"),
    [
        ("tokenizer", "", "several"),
        ("distill", "", "several"),
        ("tokens", "", "several"),
        ("tokenizer --device cuda:1", "", "one"),
        ("tokenizer --device=cpu", "", "one"),
        ("tokenizer --device cpu", "2", "several"),
        ("sample", "", "one"),
        ("sample", "2", "one"),
        ("sample --npz a.npz", "", "several"),
        ("sample --folder=a", "", "several"),
        ("sample --npz a.npz --device cpu", "", "one"),
        ("eval", "2", "one"),
        ("eval --samples a --reference b", "", "several"),
        ("export", "2", "one"),
        ("bench", "", "one"),
        ("ablate", "2", "one"),
    ],
)
def test_commands_say_whether_they_start_several_processes(
    line: str,
    nproc: str,
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", nproc)
    assert run_main("--check", *line.split()) == 0
    assert capsys.readouterr().out == answer + "\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tokenizer --data /nowhere", "/nowhere is not a folder"),
        ("tokenizer --device cuda:77", "--device cuda:77 is not available"),
        ("tokenizer --batch-size 9", "--batch-size: a batch size of 9 does not divide over 2 processes"),
        ("tokenizer --lpips 1 --lpips-weights nowhere.pth", "but nowhere.pth is no file"),
        ("tokenizer --init nowhere.pth", "--init nowhere.pth is no file"),
        ("tokenizer --out full", "--out full holds files but no run"),
        ("distill --tokenizer /nowhere", "--tokenizer: /nowhere is no folder"),
        ("distill --crops 0", "--crops 0 draws a new crop every epoch"),
        ("tokens --tokenizer /nowhere", "--tokenizer: /nowhere is no folder"),
        ("tokens --precision tf32 --device cpu", "--precision: tf32 is CUDA's"),
        ("sample --npz a.npz --folder b", "--npz and --folder are two jobs"),
        ("sample --npz a.npz --student /nowhere", "/nowhere"),
        ("sample --npz a.npz", "there is no runs/distill-* here"),
        ("eval --samples a", "--samples needs --reference"),
        ("eval --samples /nowhere --reference b", "--samples: /nowhere is neither a file nor a folder"),
    ],
)
def test_preflight_refuses_what_every_process_would(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert run_main("--preflight", "2", *line.split()) == 2
    out, error = capsys.readouterr()
    assert words in error and len(error.strip().splitlines()) == 1 and not out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_preflight_lets_good_options_pass_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ("tokenizer", "tokenizer --steps 30", "tokenizer --dry-run --batch-size 9", "bench"):
        assert run_main("--preflight", "2", *line.split()) == 0
    assert capsys.readouterr() == ("", "") and not any(tmp_path.iterdir())


def test_of_several_processes_the_first_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run_main("tokenizer", "--data", "/nowhere") == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


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


def test_environment_check_knows_an_upper_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from refocus_ext import environment

    monkeypatch.setattr(environment, "_requirements", lambda group: ["pytest>=1,<2", "typed-argparse>=0.3.1,<0.4"])
    assert [lack.split(" ")[0] for lack in environment.lacking()] == ["pytest<2"]
    assert environment.requirements("command-line") == ["typed-argparse>=0.3.1,<0.4"]


@pytest.mark.parametrize("options", [["tokenizer", "--data", "/nowhere"], ["distill", "--tokenizer", "/nowhere"]])
def test_several_processes_refuse_with_one_sentence(options: list[str], tmp_path: Path) -> None:
    """No report of torchrun's, though the device is named and NPROC asks for two."""
    words = [*options, "--device", "cpu", "--out", str(tmp_path / "run")]
    result = shell(*words, REFOCUS_PYTHON=sys.executable, NPROC="2")
    assert result.returncode == 2 and not result.stdout
    assert re.fullmatch(r"refocus: --(data|tokenizer): /nowhere is .*\n", result.stderr)
    assert not (tmp_path / "run").exists()


def test_tab_completes_commands_options_and_choices() -> None:
    script = """
eval "$(bash run.sh completion)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=($1)
_refocus_run_sh
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def complete(line: str) -> list[str]:
        command = ["bash", "-c", script, "bash", line]
        environment = os.environ | {"REFOCUS_PYTHON": sys.executable}
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
        return result.stdout.split()

    assert complete("bash run.sh tokenizer --bl") == ["--blur"]
    assert complete("bash run.sh tok") == ["tokenizer", "tokens"]
    assert complete("bash run.sh tokenizer --blur g") == ["gaussian"]
    assert complete("bash another.sh tokenizer --bl") == []


# ------------------------------------------------------------------------------------------------ a new machine


def make_wheel(name: str, folder: Path) -> None:
    """An installed pure-Python package as a wheel, for a pip that has no network."""
    package = distribution(name)
    stem = f"{name.replace('-', '_')}-{package.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in package.files or ():
            if (
                "__pycache__" not in file.parts
                and file.parts[0] != ".."
                and file.name not in ("INSTALLER", "REQUESTED")
            ):
                wheel.write(str(file.locate()), str(file))


@pytest.fixture
def new_machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`machine(words..., wheels=True)` runs run.sh where python3 has no packages; wheels: whether pip finds typed-argparse."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "refocus_ext", root / "refocus_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.sh", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    (tmp_path / "wheels").mkdir()
    for package in ("typed-argparse", "typing-extensions"):
        make_wheel(package, tmp_path / "wheels")

    def machine(*words: str, wheels: bool) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{tmp_path / 'bare' / 'bin'}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels") if wheels else "",
            "REFOCUS_TICK": "0.1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = ["bash", str(root / "run.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)

    return machine


def test_without_network_there_is_the_list(new_machine: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for words in ([], ["help"], ["--help"]):
        listed = new_machine(*words, wheels=False)
        assert listed.returncode == 0 and "usage: bash run.sh COMMAND" in listed.stdout and not listed.stderr
    assert "did you mean 'tokenizer'?" in new_machine("tokeniser", "--help", wheels=False).stderr
    assert "--slow" in new_machine("test", "--help", wheels=False).stdout
    refused = new_machine("tokenizer", "--help", wheels=False)
    assert refused.returncode == 1 and not refused.stdout
    assert "installing typed-argparse>=0.3.1,<0.4 failed (above: why)" in refused.stderr


def test_options_are_read_before_the_heavy_packages_are_installed(
    new_machine: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    helped = new_machine("tokenizer", "--help", wheels=True)
    assert helped.returncode == 0 and "--blur {disk" in helped.stdout
    assert "installing typed-argparse>=0.3.1,<0.4, which reads the options, into" in helped.stderr
    assert re.search(r"^refocus: installing for \d+ s: ", helped.stderr, flags=re.M), "it says that it is at work"
    wrong = new_machine("tokenizer", "--stps", "3", wheels=False)
    assert wrong.returncode == 2 and "did you mean --steps?" in wrong.stderr and "installing" not in wrong.stderr
    right = new_machine("tokenizer", "--steps", "3", wheels=False)
    assert right.returncode == 1 and "installing the packages failed (above: why)" in right.stderr
    assert re.search(r"lacks torch>?.*torchvision.*: installing into", right.stderr)
