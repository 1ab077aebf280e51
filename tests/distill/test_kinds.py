"""Kinds of teachers: the command line offers them all, and each answers what stage 2 asks."""

from __future__ import annotations

import pytest
from runs import parsed

from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead
from refocus_ext.distill.teacher.kinds import KINDS, OFF, teacher_class

COUNTS = TeacherOverhead(var_parameters=1000, teacher_parameters=20, var_flops=100, both_flops=110)


def test_the_command_line_offers_every_kind_and_none() -> None:
    assert teacher_class(OFF) is None
    for word in (*KINDS, OFF):
        options = parsed("distill", "--depth", "2", "--teacher", word)
        assert isinstance(options, DistillOptions) and options.teacher == word
    with pytest.raises(SystemExit):
        parsed("distill", "--depth", "2", "--teacher", "none")


@pytest.mark.parametrize(
    ("word", "parameters", "flops", "words"),
    [
        ("on", 20, 110, "+2.0% parameters, +10.0% FLOPs"),
        ("separate", 1020, 200, "+2.0% parameters and a second VAR"),
    ],
)
def test_each_kind_says_what_it_costs(word: str, parameters: int, flops: int, words: str) -> None:
    kind = teacher_class(word)
    assert kind is not None and issubclass(kind, AliasTeacher)
    assert (kind.parameters_added(COUNTS), kind.step_flops(COUNTS), kind.cost_in_words(COUNTS)) == (
        parameters,
        flops,
        words,
    )
