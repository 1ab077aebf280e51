"""What a client sends is checked: menus and numbers of the page can be bypassed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from students import write_run

from refocus_ext.errors import UsageError
from refocus_ext.sampling.student import load_student
from refocus_ext.web.choices import checked_label, class_word, classes_of, command_line, sample_options


@pytest.mark.parametrize(
    ("seed", "cfg"), [(None, 4), (-1, 4), (2**70, 4), (0, None), (0, -1), (0, 1e9), (0, float("nan"))]
)
def test_numbers_outside_their_limits_are_refused(seed: Any, cfg: Any) -> None:
    with pytest.raises(UsageError):
        sample_options(seed, cfg)


def test_numbers_become_options() -> None:
    options = sample_options(7.0, 2)
    assert (options.seed, options.cfg, options.top_k) == (7, 2.0, 900)


def test_classes_by_name_and_no_class(tmp_path: Path) -> None:
    student = load_student(write_run(tmp_path / "run"))
    assert classes_of(student) == [("tench", 0), ("Golden Retriever", 1), ("toaster", 2), ("no class", 5)]
    assert [checked_label(student, label) for label in (0, 5)] == [0, 5]
    for label in (None, -1, 6):
        with pytest.raises(UsageError, match="class"):
            checked_label(student, label)
    assert [class_word(student, label) for label in (1, 4, 5)] == ["Golden Retriever", "4", "none"]


def test_a_command_line_is_quoted() -> None:
    assert (
        command_line("sample", "--classes", "Golden Retriever") == "`bash run.sh sample --classes 'Golden Retriever'`"
    )
