"""The table of rows: one entry each, and rows that share a tokenizer share its run."""

from __future__ import annotations

from typing import Any

import pytest
from runs import parsed

from refocus_ext.evidence.ablation import command, differences, rows
from refocus_ext.evidence.ablation.options import AblateOptions, row_list
from refocus_ext.evidence.ablation.report import table_lines
from refocus_ext.evidence.ablation.rows import PAPER, ROWS, TABLE, Row, Stage1
from refocus_ext.options.presets import preset


def test_one_name_stands_for_one_tokenizer() -> None:
    """Its run's folder is called by that name."""
    assert len({row.tokenizer for row in TABLE.values()}) == len({row.tokenizer.name for row in TABLE.values()})
    assert tuple(TABLE) == ROWS and row_list(",".join(ROWS)) == ROWS


def test_the_papers_rows_are_whole() -> None:
    assert all((row.fid is None) == (row.inception_score is None) for row in TABLE.values())
    assert ROWS[: len(PAPER)] == PAPER and {name for name in ROWS if TABLE[name].fid is None} == set(ROWS[len(PAPER) :])


def test_a_row_beside_the_papers_changes_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the full method's two commands, or of another such row's, one option more in one of them."""
    full = TABLE["full"]
    for name in ROWS[len(PAPER) :]:
        row = TABLE[name]
        changed = [*row.tokenizer.options, *row.teacher]
        if sum(word.startswith("--") for word in changed) > 1:
            assert (row.tokenizer, row.teacher[:-2]) in [
                (other.tokenizer, other.teacher) for other in TABLE.values()
            ], name
        assert changed and (row.tokenizer == full.tokenizer) != (row.teacher == full.teacher)
        parsed("tokenizer", *row.tokenizer.options), parsed("distill", *row.teacher)


def test_every_teacher_is_compared_with_none() -> None:
    """On the same tokens, whatever the teacher is."""
    run = [{"points": [{"step": 1}], "ce_student": 3.0}]
    names = ("baseline", "full", "no-teacher", "ema", "constant-aliases", "ema-no-aliases")
    results: dict[str, Any] = dict.fromkeys(names, run)
    for name in names:
        off = [other for other in differences.summarise(name, results)["against"] if other != "full"]
        controls = [other for other in TABLE[name].controls if other in names]
        assert off == ([] if name in ("baseline", "no-teacher") else ["no-teacher", *controls])
    assert TABLE["ema"].controls == ("ema-constant", "ema-no-aliases") and TABLE["full"].controls == (
        "constant-aliases",
    )


def test_a_new_row_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Row("windowed sinc", Stage1("sinc", ("--blur", "sinc")))
    monkeypatch.setitem(rows.TABLE, "sinc", new)
    values: dict[str, Any] = dict(preset("demo", "ablate"))
    options = AblateOptions(preset="demo", rows=("sinc", "full"), **values)
    tokenizers, students = (
        [words for words in command.commands(options) if words[0] == name] for name in ("tokenizer", "distill")
    )
    assert [("--blur" in words) for words in tokenizers] == [True, False] and len(students) == 2
    assert students[0][students[0].index("--tokenizer") + 1].endswith("tokenizer-sinc-seed0")
    point = {"step": 1, "thumbnail_fd": 2.0}
    results: dict[str, Any] = {"sinc": [{"points": [point], "ce_student": 3.0}]}
    line = table_lines({"sinc": differences.summarise("sinc", results)}, ["thumbnail_fd"])[-1]
    assert line == "| windowed sinc | 2.000 | 3.000 (sinc) | - | - | - |"  # the paper has no such row
