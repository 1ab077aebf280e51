"""The command line: instant help, suggestions, and one clear sentence with exit code 2 for bad input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAST, write_images
from runs import run_main

from refocus_ext.commands import COMMANDS, OF_RUN_SH

ROOT = Path(__file__).resolve().parent.parent


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("argv", [[], ["help"], ["tokenizer", "--help"], ["help", "tokenizer"], ["test", "--help"]])
def test_help_needs_nothing_but_the_option_library(argv: list[str]) -> None:
    script = f"""
import sys
before = set(sys.modules)
from refocus_ext.commands import main
try:
    main({argv!r})
except SystemExit:
    pass
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("foreign:", *sorted(tops - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True, text=True)
    foreign = set(done.stdout.splitlines()[-1].split()[1:])
    assert foreign <= {"refocus_ext", "typed_argparse", "typing_extensions"}
    if "tokenizer" not in argv:
        assert foreign == {"refocus_ext"}, "the list of commands needs the standard library alone"


def test_the_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main() == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", out, flags=re.M) for name in [*COMMANDS, *OF_RUN_SH])


def test_help_gives_unit_and_default_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokenizer", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "radius of the widest PSF (pixels; default: demo 6, letters 6, letters-128 9, others 12)" in out
    assert "--seed" in out and "--dry-run" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tokeniser"], "did you mean 'tokenizer'?"),
        (["tokenizer", "--bacth-size", "8"], "did you mean --batch-size?"),
        (["tokenizer", "--batch", "8"], "there is no option '--batch'"),
        (
            ["distill", "--image-size", "64"],
            "'--image-size' here: it is one of `tokenizer`, and image size, token maps",
        ),
        (["distill", "--ema=0.9"], "there is no option '--ema' here: it is one of `tokenizer`"),
        (["distill", "--val-image", "4"], "did you mean --val-images?"),
        (["tokenizer", "oops"], "'oops' was not expected here"),
        (["tokenizer", "--steps", "0"], "0 is not greater than 0"),
        (["tokenizer", "--steps", "many"], "--steps: 'many' is not a whole number"),
        (["tokenizer", "--blur", "box"], "--blur: there is no 'box'"),
    ],
)
def test_wrong_usage(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(*argv) == 2
    assert words in sentence(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "/nowhere is not a folder"),
        (["--focus-states", "4"], "larger image_size (--image-size, --focus-states)."),
        (
            ["--image-size", "70"],
            "image_size 70 is not a multiple of the encoder stride 16; use 64 or 80 (--image-size).",
        ),
        (["--rho-max", "400"], "reaches 400 px to each side"),
        (["--batch-size", "1000"], "--batch-size 1000 is larger than the data set of"),
        (["--patch-nums", "1,2,4,3"], "the token maps 1,2,4,3 must rise and end at image size / 16 = 4 "),
        (["--ch", "40"], "--ch 40 is not a multiple of 32"),
        (["--steps", "10", "--warm-autoencoder", "10"], "leaves no step of --steps 10 with quantization"),
        (["--resume", "nothing.pt"], "--resume nothing.pt is not a checkpoint; it takes auto, never"),
        (["--device", "cuda:77"], "--device cuda:77 is not available"),
        (["--noise-min", "0.5"], "(--noise-min, --noise-max)."),
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
    assert "val/ has the class bird, which train/ does not have" in attempt()
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
    assert "focus states (disk): 1: radius 6 px, maps 1;" in out and "upstream: " in out
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
        ("tokenizer --lpips 1 --lpips-weights nowhere.pth", "but nowhere.pth is not a file"),
        ("tokenizer --lpips 1 --lpips-weights nowhere.pth", "(or train without LPIPS: --lpips 0)"),
        ("tokenizer --init nowhere.pth", "--init nowhere.pth is not a file"),
        ("tokenizer --out full", "--out full holds files but no run"),
        ("distill --tokenizer /nowhere --patch-nums 1,2", "--tokenizer: /nowhere does not exist"),
        ("distill --crops 0", "--crops 0 draws a new crop every epoch"),
        ("tokens --tokenizer /nowhere", "--tokenizer: /nowhere does not exist"),
        ("tokens --precision tf32 --device cpu", "--precision: tf32 is CUDA's"),
        ("sample --npz a.npz --folder b", "--npz and --folder are two jobs"),
        ("sample --npz a.npz --student /nowhere", "/nowhere"),
        ("sample --npz a.npz", "this folder has no runs/distill-*"),
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
    for line in ("tokenizer", "tokenizer --steps 30", "tokenizer --dry-run --batch-size 8", "bench"):
        assert run_main("--preflight", "2", *line.split()) == 0
    assert capsys.readouterr() == ("", "") and not any(tmp_path.iterdir())


def test_more_processes_than_gpus_are_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("refocus_ext.engine.distributed.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("NPROC", "3")
    assert run_main("--preflight", "3", "tokenizer") == 2
    assert "NPROC asks for 3 processes on a machine with 2 GPUs; lower NPROC" in sentence(capsys)


def test_of_several_processes_the_first_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run_main("tokenizer", "--data", "/nowhere") == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_the_fast_part_of_the_suite_is_there() -> None:
    missing = [name for name in FAST if not (ROOT / "tests" / name).exists()]
    assert not missing and (ROOT / "tests" / FAST[0]) == Path(__file__)
