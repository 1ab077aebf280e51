"""The report of the alias benchmark: what is printed, and what only the file has."""

from __future__ import annotations

from pathlib import Path

import pytest

from refocus_ext.errors import RunFailed
from refocus_ext.evidence.aliasing.page import Page


def test_the_terminal_and_the_file_say_the_same_but_for_the_quiet_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Page(tmp_path)
    page.section("Filters")
    page.table(["a  b", "1  2"], "a title")
    page.words(["a sentence", "  below it"])
    page.table(["long"], quiet=True)
    assert page.picture("x.png", "a caption") == tmp_path / "x.png"
    page.close()
    printed, text = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "Filters\n-------" in printed and "long" not in printed and "x.png" not in printed
    assert "## Filters" in text and "**a title**" in text and "```\na  b\n1  2\n```" in text
    assert "- a sentence\n  - below it\n" in text and "long" in text and "![a caption](x.png)" in text


def test_a_report_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(
        RunFailed, match=r"report\.md could not be written \(a folder is in the place of the file [\w.]+\)"
    ):
        Page(tmp_path).close()
