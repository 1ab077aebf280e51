"""The study of letters that the docs show: its command reports the recorded results, and the page has its numbers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from refocus_ext.commands import main
from refocus_ext.evidence.ablation import command
from refocus_ext.evidence.ablation.differences import Difference, paired, summarise
from refocus_ext.evidence.ablation.rows import PAPER, TABLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "letters.md").read_text()
EARLIER = (ROOT / "docs" / "letters" / "prefixes.md").read_text()  # the rows with prefixes that train the tokens

MEANS = {
    "held-out cross-entropy": ("ce_student", "{:.3f}"),
    "teacher's gap": ("gap_teacher", "{:.3f}"),
    "read": ("legibility", "{:.1%}"),
    "distance": ("letters_fd", "{:.1f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "edges": ("edges", "{:+.1f} dB"),
    "moire": ("moire", "{:+.1f} dB"),
}
DIFFERENCES = {
    "legibility": ("read", lambda mean, margin: f"{100 * mean:+.1f} +- {100 * margin:.1f} points"),
    "letters_fd": ("distance", lambda mean, margin: f"{mean:+.1f} +- {margin:.1f}"),
    "edges": ("edges", lambda mean, margin: f"{mean:+.2f} +- {margin:.2f} dB"),
    "moire": ("moire", lambda mean, margin: f"{mean:+.2f} +- {margin:.2f} dB"),
    "ce_student": ("cross-entropy", lambda mean, margin: f"{mean:+.3f} +- {margin:.3f} nats per token"),
}
MINUS = {"minus that without a teacher": "no-teacher", "minus the first row's": "apart"}


class Shown(NamedTuple):
    """A command of the page that reads recorded results, and the table after it: heads, and cells by row."""

    words: list[str]
    heads: list[str]
    rows: dict[str, list[str]]


def documented() -> Iterator[Shown]:
    for command_line, after in re.findall(
        r"^bash run\.sh (ablate (?:.*\\\n)*.*--known docs/.*)$\n```\n([\s\S]*?)(?=^```|\Z)", PAGE + EARLIER, flags=re.M
    ):
        table = re.findall(r"(?:^\|.*\n)+", after, flags=re.M)[0].splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        yield Shown(
            shlex.split(command_line.replace("\\\n", " ")),
            cells[0][1:],
            {title: values for title, *values in cells[2:]},
        )


@pytest.mark.parametrize("shown", list(documented()), ids=lambda shown: shown.words[shown.words.index("--rows") + 1])
def test_a_table_of_the_study_is_what_its_command_prints(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains nothing."""

    def launch(words: list[str]) -> int:
        raise AssertionError(f"{words} was launched")

    monkeypatch.setattr(command, "launch", launch)
    monkeypatch.chdir(ROOT)
    out = ("--out", str(tmp_path / "out"), "--json", str(tmp_path / "numbers.json"))
    assert main([*shown.words, *out]) == 0
    found: Any = json.loads((tmp_path / "numbers.json").read_text())
    assert set(shown.rows) == {TABLE[name].title for name in found["rows"]} and len(shown.rows) > 2
    for name, row in found["rows"].items():
        for head, cell in zip(shown.heads, shown.rows[TABLE[name].title], strict=True):
            assert cell == expected(head, row), (name, head)


def expected(head: str, row: dict[str, Any]) -> str:
    if head in MINUS:
        minus = row["against"].get(MINUS[head], {}).get("ce_student")
        return f"{minus['mean']:+.3f}" if minus else ""
    name, form = MEANS[head]
    name = row["gap"] if name == "gap_teacher" else name
    return re.sub(r"^-(?=0\.0+$)", "", form.format(row["mean"][name])) if name in row["mean"] else ""


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("results.json", ("baseline", "full", "no-refocusing", "sharp-states", "decoder-prefixes", "all-prefixes")),
        ("all-prefixes.json", (*PAPER, "sharp-states")),
    ],
)
def test_the_differences_that_are_shown_are_all_whose_interval_has_no_zero(file: str, rows: tuple[str, ...]) -> None:
    """In the measures that the report compares."""
    recorded = json.loads((ROOT / "docs" / "letters" / file).read_text())["rows"]
    results = {row: [recorded[row][seed] for seed in "234"] for row in rows}
    compared = {
        (name, other, measure): Difference(**found)
        for name in results
        for other, measures in summarise(name, results)["against"].items()
        for measure, found in measures.items()
        if measure in DIFFERENCES
    }
    apart = {key: d for key, d in compared.items() if d.margin is not None and abs(d.mean) > d.margin}
    section = next(
        part for part in re.split(r"^##? ", PAGE + EARLIER, flags=re.M) if f"--known docs/letters/{file}" in part
    )
    (table,) = re.findall(r"^\| row \| beside \| measure \| difference \|\n\|.*\n((?:\|.*\n)+)", section, flags=re.M)
    shown = {
        (name, other, measure): value.split(" ([")[0]
        for name, other, measure, value in (
            (cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()
        )
    }
    assert f"Of its {len(compared)}\n95% intervals" in section
    assert shown == {
        (TABLE[name].title, TABLE[other].title, DIFFERENCES[measure][0]): DIFFERENCES[measure][1](d.mean, d.margin)
        for (name, other, measure), d in apart.items()
    }


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("guidance.json", ("baseline", "full", "sharp-states", "decoder-prefixes")),
        ("all-prefixes-guidance.json", ("gaussian", "sharp-states")),
    ],
)
def test_a_table_of_guidances_has_the_means_of_what_is_recorded(file: str, rows: tuple[str, ...]) -> None:
    """Of three seeds, as `legibility --student .. --cfg .. --json` names them."""
    recorded = json.loads((ROOT / "docs" / "letters" / file).read_text())
    after = next(page.split(link)[1] for page in (PAGE, EARLIER) if (link := f"{file})") in page)
    table = re.findall(r"(?:^\|.*\n)+", after, flags=re.M)[0].splitlines()
    heads, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert heads == ["row", "cfg", "read", "recall", "distance"] and len(lines) == 4 * len(rows)
    names = {TABLE[name].title: name for name in rows}
    for title, cfg, *cells in lines:
        runs = [recorded[f"{names[title]}-seed{seed}, cfg {cfg}"] for seed in (2, 3, 4)]
        mean = {name: sum(run[name] for run in runs) / 3 for name in runs[0]}
        assert cells == [MEANS[head][1].format(mean[MEANS[head][0]]) for head in heads[2:]], (title, cfg)


RECORDED_GUIDANCE = json.loads((ROOT / "docs" / "letters" / "guidance.json").read_text())


def at_guidance(row: str, other: str, measure: str, cfg: str) -> Difference:
    """Of three seeds, the row less the other."""
    ours, theirs = (
        [RECORDED_GUIDANCE[f"{name}-seed{seed}, cfg {cfg}"][measure] for seed in (2, 3, 4)] for name in (row, other)
    )
    return paired(ours, theirs)


def test_no_guidance_tells_the_full_method_from_plain_var() -> None:
    """As page and README say: no difference of theirs, seed by seed, is beyond its 95% interval."""
    for cfg in ("0", "1.5", "3", "5"):
        for measure in ("legibility", "letters_fd", "precision", "recall"):
            found = at_guidance("full", "baseline", measure, cfg)
            assert found.margin is not None and abs(found.mean) < found.margin, (measure, cfg)
    read = [
        f"{100 * d.mean:+.1f} +- {100 * (d.margin or 0):.1f}"
        for d in (at_guidance("full", "baseline", "legibility", c) for c in ("0", "1.5", "3", "5"))
    ]
    told = "(read at cfg 0 by {} points, at 1.5, 3 and 5 by {}, {} and {})".format(*read)
    assert told in " ".join(PAGE.split())


def test_what_blur_is_worth_at_each_guidance() -> None:
    """As page and README say of the full method without blur."""
    less = [at_guidance("full", "sharp-states", "legibility", cfg) for cfg in ("0", "1.5", "3", "5")]
    first, *others = [f"{100 * d.mean:.1f} +- {100 * (d.margin or 0):.1f}" for d in less]
    assert [d.mean > (d.margin or 0) for d in less] == [True, False, False, False]
    page, readme = (" ".join(text.split()) for text in (PAGE, (ROOT / "README.md").read_text()))
    assert f"Without blur {first} points fewer are read than with it at cfg 0" in page
    assert "at 1.5, 3 and 5 it is {}, {} and {} points fewer".format(*others) in page
    assert f"blur helps a little ({first} points without guidance)" in readme
    recall = at_guidance("sharp-states", "full", "recall", "0")
    assert f"at the same recall ({recall.mean:.3f} +- {recall.margin:.3f})" in page
    for cfg in ("0", "1.5", "3", "5"):
        beside_var = at_guidance("sharp-states", "baseline", "legibility", cfg)
        assert abs(beside_var.mean) < (beside_var.margin or 0), "as the page says"


def test_what_a_frozen_teacher_gives_is_not_owed_to_alias_tokens() -> None:
    """As page and README say."""
    recorded = json.loads((ROOT / "docs" / "letters" / "frozen.json").read_text())["rows"]
    results = {row: [runs[seed] for seed in "01"] for row, runs in recorded.items() if row != "no-teacher"}
    assert recorded["no-teacher"]["0"]["ce_student"] == recorded["apart"]["0"]["ce_student"], "to the bit"
    against = summarise("frozen", results)["against"]
    gain, owed = (Difference(**against[row]["ce_student"]) for row in ("apart", "frozen-constant"))
    page, readme = (" ".join(text.split()) for text in (PAGE, (ROOT / "README.md").read_text()))
    assert f"makes its student better by {-gain.mean:.3f} +- {gain.margin:.3f} nats per token" in page
    assert f"their students are equal ({owed.mean:.3f} +- {owed.margin:.3f})" in page
    assert f"a teacher that is trained first and frozen by {-gain.mean:.3f}, and as much if it knows nothing" in readme
