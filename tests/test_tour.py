"""docs/tour.ipynb: its cells run from top to bottom on the runs that the README's two commands leave, here tiny ones."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import TINY, run_main

TOUR = Path(__file__).resolve().parent.parent / "docs" / "tour.ipynb"
RUNS = 'ROOT / "runs/tokenizer", ROOT / "runs/distill-d8"'


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, student = tmp_path / "tokenizer", tmp_path / "distill"
    assert run_main("tokenizer", *TINY, "--out", str(tokenizer)) == 0
    short = "--depth 2 --steps 2 --crops 1 --batch-size 4 --samples 0 --picture-every 2".split()
    assert run_main("distill", "--tokenizer", str(tokenizer), *short, "--out", str(student)) == 0
    capsys.readouterr()
    cells = json.loads(TOUR.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) == 15 and RUNS in sources[0]
    sources[0] = sources[0].replace(RUNS, f"Path({str(tokenizer)!r}), Path({str(student)!r})")
    monkeypatch.chdir(TOUR.parent)
    names: dict[str, Any] = {}
    shown = [picture for source in sources if isinstance(picture := value_of(source, names), Image.Image)]
    assert len(shown) == 6 and all(picture.width > 4 * 128 for picture in shown)
    printed = capsys.readouterr().out
    assert "maps: [1, 4] tokens; 5 in all" in printed and "most probable as" in printed


def value_of(source: str, names: dict[str, Any]) -> object:
    """Runs a cell; the value of its last line, which Jupyter shows."""
    module = ast.parse(source)
    last = module.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(module, str(TOUR), "exec"), names)
        return None
    module.body.pop()
    exec(compile(module, str(TOUR), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(TOUR), "eval"), names)


def test_the_tour_is_committed_with_its_pictures_and_no_paths_of_a_machine() -> None:
    text = TOUR.read_text()
    assert len(text) < 1_000_000 and text.count('"image/png"') == 6
    assert not re.search(r"/(home|root|tmp|mnt|opt|Users|work)/", text)
