"""The study of letters that the docs show: its command reports the recorded results, and the page has its numbers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from refocus_ext.commands import main
from refocus_ext.evidence.ablation import command
from refocus_ext.evidence.ablation.rows import TABLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "letters.md").read_text()


def documented() -> list[str]:
    """The words of the page's command that reads recorded results."""
    (line,) = re.findall(r"^bash run\.sh (ablate (?:.*\\\n)*.*--known docs/.*)$", PAGE, flags=re.M)
    return shlex.split(line.replace("\\\n", " "))


def test_the_table_of_teachers_is_what_its_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains nothing."""

    def launch(words: list[str]) -> int:
        raise AssertionError(f"{words} was launched")

    monkeypatch.setattr(command, "launch", launch)
    monkeypatch.chdir(ROOT)
    out = ("--out", str(tmp_path / "out"), "--json", str(tmp_path / "numbers.json"))
    assert main([*documented(), *out]) == 0
    found: Any = json.loads((tmp_path / "numbers.json").read_text())
    table = {
        name: cells for line in PAGE.splitlines() if (cells := line.strip("| ").split(" | "))
        for name in found["rows"] if cells[0] == TABLE[name].title and len(cells) == 5
    }  # fmt: skip
    assert set(table) == set(found["rows"]) and len(table) > 2
    for name, row in found["rows"].items():
        mean, minus = row["mean"], row["against"].get("no-teacher")
        assert table[name][1] == f"{mean['ce_student']:.3f}"
        assert table[name][2] == (f"{minus['ce_student']['mean']:+.3f}" if minus else "")
        assert table[name][3] == (f"{mean['gap_teacher']:.3f}" if "gap_teacher" in mean else "")
        assert table[name][4] == f"{mean['legibility']:.1%}"
