"""`bash run.sh status`: instant, reads only, and never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_folder, write_sign
from runs import TINY, run_main

from refocus_ext.engine.life_sign import look
from refocus_ext.tokenizer.training import TokenizerTraining

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's checksum and time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files} | {
        str(folder): ("", folder.stat().st_mtime_ns)
    }


def test_it_needs_no_package_but_that_of_options_and_writes_nothing() -> None:
    run = write_folder(Path("runs/a"), "tokenizer", "--steps", "9", steps=3, saved=3)
    write_sign(run, started="1")
    before = contents(Path("runs"))
    script = """
import sys
before = set(sys.modules)
from refocus_ext.commands import main
code = main(["status", "--verify"])
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print("foreign:", code, *sorted(tops - set(sys.stdlib_module_names)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("runs/a: tokenizer, preset demo\n")
    assert done.stdout.splitlines()[-1] == "foreign: 0 refocus_ext typed_argparse typing_extensions"
    assert contents(Path("runs")) == before


def test_run_sh_runs_it_without_the_heavy_packages() -> None:
    command = [sys.executable, "-m", "refocus_ext", "--check", "status"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "light\n"


def test_without_runs_it_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("status") == 0
    assert capsys.readouterr().out == "There is no run in runs/; `bash run.sh tokenizer` begins one.\n"


def test_damaged_and_foreign_folders_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(Path("runs/good"), "tokenizer", steps=1)
    write_folder(Path("runs/torn"), "tokenizer", steps=1)
    Path("runs/torn/config.json").write_text('{"identity"')
    Path("photos").mkdir()
    Path("photos/a.jpg").write_text("")
    assert run_main("status", "runs", "photos", "runs/good") == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert blocks[0].startswith("runs/good: tokenizer") and blocks[1:] == [
        "runs/torn: no run (its config.json is damaged or not that of a run)",
        "photos: no run (nor is there one in it)",
    ]
    assert run_main("status", "nowhere") == 2
    assert capsys.readouterr().err == "refocus: nowhere is no folder; give a run folder or a folder of runs.\n"


def test_json_is_written_beside_runs_and_never_into_one(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(Path("runs/a"), "tokenizer", steps=1)
    assert run_main("status", "--json", "out/status.json") == 0
    (found,) = json.loads(Path("out/status.json").read_text())["runs"]
    assert found["path"] == "runs/a" and found["state"] == "interrupted"
    assert run_main("status", "--json", "runs/a/status.json") == 2
    assert "would be in a run folder" in capsys.readouterr().err and not Path("runs/a/status.json").exists()


def test_watching_lists_again_until_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    write_folder(Path("runs/a"), "tokenizer", steps=1)
    monkeypatch.setattr(time, "sleep", sleep)
    assert run_main("status", "--watch", "30") == 0
    assert waits == [30.0] * 3 and capsys.readouterr().out.count("runs/a: tokenizer") == 3


def test_a_real_run_before_during_and_after(
    image_tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is seen running, its resume line resumes it, and at its end nothing of its life sign is left."""
    out = Path("runs/tiny")
    words = ["tokenizer", *TINY, "--data", str(image_tree), "--out", str(out)]
    during: list[Any] = []
    real = TokenizerTraining.train_step

    def watched(self: TokenizerTraining, step: int, batches: Any) -> Any:
        seen = look(out)
        during.append(seen.life(time.time()) if seen else None)
        if step == 3 and len(during) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, batches)

    monkeypatch.setattr(TokenizerTraining, "train_step", watched)
    assert run_main(*words, "--resume", "never") == 130
    assert during == ["alive"] * 4 and look(out) is None
    capsys.readouterr()
    assert run_main("status", "--json", "status.json") == 0
    (found,) = json.loads(Path("status.json").read_text())["runs"]
    assert (found["state"], found["step"], found["checkpoint"]) == ("interrupted", 4, 4)
    line = found["next"][0]
    assert line.startswith("bash run.sh tokenizer ") and "--resume" not in line
    assert run_main(*line.split()[2:]) == 0 and len(during) == 6, "the line resumed it"
    assert look(out) is None
    capsys.readouterr()
    assert run_main("status") == 0
    shown = capsys.readouterr().out
    assert "finished: 6 steps" in shown and "bash run.sh distill --tokenizer runs/tiny" in shown
    assert run_main(*words) == 0 and look(out) is None, "nothing to do leaves no sign either"


def test_the_command_line_of_a_run_is_no_part_of_it(image_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of an earlier version, whose config.json has none, is the same run."""
    words = ["tokenizer", *TINY, "--data", str(image_tree), "--out", "runs/tiny", "--steps", "3"]
    assert run_main(*words) == 0
    file = Path("runs/tiny/config.json")
    config = json.loads(file.read_text())
    assert config.pop("invocation")["line"].startswith("bash run.sh tokenizer ")
    file.write_text(json.dumps(config))
    capsys.readouterr()
    assert run_main(*words) == 0
    assert "is already trained for 3 steps" in capsys.readouterr().out
