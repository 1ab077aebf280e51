"""The table of rows: one entry each, and rows that share a tokenizer share its run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from runs import parsed, run_main

from refocus_ext.errors import UsageError
from refocus_ext.evidence.ablation import command, differences, rows
from refocus_ext.evidence.ablation.options import AblateOptions, row_list
from refocus_ext.evidence.ablation.report import table_lines
from refocus_ext.evidence.ablation.results import OtherBudget, Results, budget_differences, budget_of
from refocus_ext.evidence.ablation.rows import GROUPS, PAPER, ROWS, TABLE, Row, Stage1
from refocus_ext.options.presets import preset


def test_one_name_stands_for_one_tokenizer() -> None:
    """Its run's folder is called by that name."""
    assert len({row.tokenizer for row in TABLE.values()}) == len({row.tokenizer.name for row in TABLE.values()})
    assert tuple(TABLE) == ROWS and row_list(",".join(ROWS)) == ROWS


def test_a_group_stands_for_its_rows() -> None:
    assert row_list("paper") == PAPER and row_list("sinc,paper,full") == ("sinc", *PAPER)
    teachers = row_list("teachers")
    assert {TABLE[name].tokenizer.tokens for name in teachers} == {"disk"}
    assert all(set(TABLE[name].controls) <= set(teachers) for name in teachers), "each with its controls"
    assert not set(GROUPS) & set(ROWS)


def test_the_papers_rows_are_whole() -> None:
    assert all((row.fid is None) == (row.inception_score is None) for row in TABLE.values())
    assert ROWS[: len(PAPER)] == PAPER and {name for name in ROWS if TABLE[name].fid is None} == set(ROWS[len(PAPER) :])


def test_every_row_is_another_and_its_options_exist() -> None:
    assert len({(row.tokenizer, row.teacher) for row in TABLE.values()}) == len(TABLE)
    for row in TABLE.values():
        parsed("tokenizer", *row.tokenizer.options), parsed("distill", *row.teacher)


def test_a_control_takes_away_alias_tokens_and_nothing_else() -> None:
    """The same kind of teacher on the same structure tokens, shown other alias tokens, fewer or none."""
    aliases = {"--teacher-aliases", "--mask"}
    for name, row in TABLE.items():
        for other in row.controls:
            control = TABLE[other]
            assert control.tokenizer.tokens == row.tokenizer.tokens, name
            ours, theirs = (_pairs(words) for words in (row.teacher, control.teacher))
            assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} <= aliases, name
            assert (row.tokenizer, ours) != (control.tokenizer, theirs)


def _pairs(words: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_a_teacher_is_trained_before_the_row_that_takes_it() -> None:
    """And shown what it will be shown; rows that are only needed for it are trained too."""
    assert command.trained(["frozen-constant", "no-teacher", "frozen"]) == [
        "apart-constant",
        "frozen-constant",
        "no-teacher",
        "apart",
        "frozen",
    ]
    for row in TABLE.values():
        assert bool(row.source) == ("frozen" in row.teacher)
        if row.source:
            ours, theirs = _pairs(row.teacher), _pairs(TABLE[row.source].teacher)
            assert all(ours.get(key) == theirs.get(key) for key in ("--teacher-aliases", "--mask"))
            assert TABLE[row.source].tokenizer == row.tokenizer


def test_an_alias_tokenizer_alone_is_trained_after_the_structure_it_stands_beside() -> None:
    values: dict[str, Any] = dict(preset("demo", "ablate"))
    options = AblateOptions(preset="demo", rows=("ema-stride-4",), out="o", **values)
    disk, stride_4, student = (step.words for step in command.commands(options, Results(options, ())))
    assert disk[disk.index("--out") + 1] == "o/tokenizer-disk-seed0" and "--only" not in disk
    assert stride_4[stride_4.index("--init") + 1] == "o/tokenizer-disk-seed0/vae.pth" and "--only" in stride_4
    assert student[student.index("--tokenizer") + 1] == "o/tokenizer-stride-4-seed0"
    assert all(row.tokenizer.structure in ("", *rows.BY_NAME) for row in TABLE.values())


def test_options_of_all_rows_do_not_undo_what_a_row_changes() -> None:
    values: dict[str, Any] = dict(preset("demo", "ablate"))
    values |= {"tokenizer_options": "--blur disk --lr 1e-3", "distill_options": "--teacher copies --lr 1e-3"}
    options = AblateOptions(preset="demo", rows=("baseline", "full"), out="o", **values)
    none, baseline, disk, full = (parsed(*step.words) for step in command.commands(options, Results(options, ())))
    read = lambda of, *names: tuple(getattr(of, name) for name in names)  # noqa: E731
    assert (read(none, "blur", "lr"), read(disk, "blur", "lr")) == (("none", 1e-3), ("disk", 1e-3))
    assert (read(baseline, "teacher", "lr"), read(full, "teacher", "lr")) == (("off", 1e-3), ("copies", 1e-3))


def test_a_budget_has_the_options_of_stage_1_whose_default_has_changed() -> None:
    values: dict[str, Any] = dict(preset("letters", "ablate"))
    options = AblateOptions(preset="letters", data="letters", **values)
    now = budget_of(options)
    before = budget_of(options.replace(tokenizer_options="--lr 1e-3 --prefix 1 --prefix-trains=all"))
    assert (now["prefix"], now["prefix_trains"]) == (0, "decoder") and (before["prefix"], before["prefix_trains"]) == (
        1,
        "all",
    )
    assert "prefix" not in budget_of(options.replace(tokenizer="run")), "that run has its own"
    then = {name: value for name, value in now.items() if not name.startswith("prefix")}
    assert list(budget_differences(now, then)) == [("prefix", 0, 1), ("prefix_trains", "decoder", "all")]
    # an ablation that was begun then can be had again
    words = OtherBudget("", list(budget_differences(now, then))).words
    assert words == "--prefix 1.0 --prefix-trains all"
    assert list(budget_differences(budget_of(options.replace(tokenizer_options=words)), then)) == []
    assert list(budget_differences(before, then | {"tokenizer_options": "--lr 1e-3"})) == []
    assert list(budget_differences(before, {**before})) == []
    assert list(budget_differences(now, then | {"tokenizer_options": "--prefix 0 --prefix-trains decoder"})) == []
    assert OtherBudget("", [("depth", 4, 6), ("prefix", 0.0, 1.0)]).words == ""
    assert list(budget_differences(now, dict(now))) == []
    demo = budget_of(options.replace(preset="demo"))
    assert (demo["prefix"], demo["prefix_trains"]) == (1, "all"), "as it was"
    for wrong in ("--prefix many", "--lr '1e-3"):
        with pytest.raises(UsageError, match=re.escape(f"'{wrong}': ")):
            budget_of(options.replace(tokenizer_options=wrong))


def test_an_ablation_of_before_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = dict(preset("letters", "ablate"))
    options = AblateOptions(preset="letters", data="letters", **values)
    then = {name: value for name, value in budget_of(options).items() if not name.startswith("prefix")}
    (tmp_path / "ablate.json").write_text(json.dumps(then))
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"budget": then, "images": options.images, "rows": {}}))
    words = ("ablate", "--data", "letters", "--out", str(tmp_path))
    for more in ((), ("--known", str(old), "--dry-run")):
        assert run_main(*words, *more) == 2
        assert (
            "go on with theirs: add --prefix 1.0 --prefix-trains all to --tokenizer-options.\n"
            in capsys.readouterr().err
        )
    now = ("--tokenizer-options", "--lr 6e-4 --prefix 1 --prefix-trains all")
    old.write_text(
        json.dumps({"budget": then | {"tokenizer_options": "--lr 6e-4"}, "images": options.images, "rows": {}})
    )
    assert run_main(*words, *now, "--known", str(old), "--dry-run") == 0
    assert run_main(*words, "--tokenizer-options", "--lr 1 --prefix many") == 2
    assert "refocus: --tokenizer-options: '--lr 1 --prefix many': " in capsys.readouterr().err


def test_every_teacher_is_compared_with_none() -> None:
    """On the same tokens, whatever the teacher is."""
    run = [{"points": [{"step": 1}], "ce_student": 3.0}]
    names = ("baseline", "full", "no-teacher", "ema", "constant-aliases", "ema-no-aliases")
    results: dict[str, Any] = dict.fromkeys(names, run)
    for name in names:
        off = [other for other in differences.summarise(name, results)["against"] if other != "full"]
        controls = [other for other in TABLE[name].controls if other in names]
        assert off == ([] if name in ("baseline", "no-teacher") else ["no-teacher", *controls])
    assert set(TABLE["ema"].controls) > {"ema-constant", "ema-no-aliases"}
    assert TABLE["full"].controls == ("other-aliases", "constant-aliases")


def test_a_new_row_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Row("windowed sinc", Stage1("sinc", ("--blur", "sinc")))
    monkeypatch.setitem(rows.TABLE, "sinc", new)
    values: dict[str, Any] = dict(preset("demo", "ablate"))
    options = AblateOptions(preset="demo", rows=("sinc", "full"), **values)
    plan = [step.words for step in command.commands(options, Results(options, ()))]
    assert [words[0] for words in plan] == [
        "tokenizer",
        "distill",
    ] * 2  # a row is measured before the next one is begun
    tokenizers, students = plan[::2], plan[1::2]
    assert [("--blur" in words) for words in tokenizers] == [True, False] and len(students) == 2
    assert students[0][students[0].index("--tokenizer") + 1].endswith("tokenizer-sinc-seed0")
    point = {"step": 1, "thumbnail_fd": 2.0}
    results: dict[str, Any] = {"sinc": [{"points": [point], "ce_student": 3.0}]}
    line = table_lines({"sinc": differences.summarise("sinc", results)}, ["thumbnail_fd"])[-1]
    assert line == "| windowed sinc | 2.000 | 3.000 (sinc) | - | - | - |"  # the paper has no such row


def test_a_teacher_without_alias_tokens_has_a_gap_and_no_control() -> None:
    results: dict[str, Any] = {
        name: [{"points": [{"step": 1, "thumbnail_fd": 2.0}], "ce_student": 3.0, "gap_teacher": 0.25} | control]
        for name, control in (("ema", {"gap_other": -0.5}), ("ema-no-aliases", {}))
    }
    lines = table_lines({name: differences.summarise(name, results) for name in results}, ["thumbnail_fd"])
    assert [line.split(" | ")[3] for line in lines[2:]] == ["0.2500 (-0.5000)", "0.2500"]


def test_the_gap_of_a_control_is_with_what_its_teacher_was_shown() -> None:
    """Its gap with the image's own tokens, which it never saw, says nothing about what its student was taught."""
    point = {"points": [{"step": 1, "thumbnail_fd": 2.0}], "ce_student": 3.0}
    gaps = {"gap_teacher": 0.25, "gap_other": -0.5, "gap_constant": 0.125}
    names = ("full", "other-aliases", "constant-aliases", "copies-constant")
    results: dict[str, Any] = {name: [point | gaps] for name in names}
    lines = table_lines({name: differences.summarise(name, results) for name in results}, ["thumbnail_fd"])
    gap = ["0.2500", "-0.5000", "0.1250", "0.1250"]
    assert [line.split(" | ")[3] for line in lines[2:]] == [f"{value} (-0.5000)" for value in gap]
