"""Kinds of teachers: the command line offers them all, and each answers what stage 2 asks."""

from __future__ import annotations

import pytest
import torch
from runs import parsed

from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import check_options
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead
from refocus_ext.distill.teacher.kinds import KINDS, OFF, teacher_class
from refocus_ext.distill.teacher.shown import shown_in_training
from refocus_ext.distill.teacher_options import check_shown
from refocus_ext.errors import UsageError

COUNTS = TeacherOverhead(1000, 20, var_flops=100, both_flops=110, block_parameters=200, kind_flops=140)


def test_the_command_line_offers_every_kind_and_none() -> None:
    assert teacher_class(OFF) is None
    for word in (*KINDS, OFF):
        options = parsed("distill", "--depth", "2", "--teacher", word)
        assert isinstance(options, DistillOptions) and options.teacher == word
    with pytest.raises(SystemExit):
        parsed("distill", "--depth", "2", "--teacher", "none")


def test_an_average_is_learnt_from_by_its_logits_alone() -> None:
    """Unless the weights are given."""
    weights = lambda *words: (options.lambda_feat, options.lambda_logit) if (options := of(*words)) else None  # noqa: E731
    assert weights() == weights("--teacher", "copies") == (1, 0.5) and weights("--teacher", "ema") == (0, 1)
    assert weights("--teacher", "ema", "--lambda-feat", "1") == (1, 1)


def of(*words: str) -> DistillOptions:
    options = parsed("distill", "--depth", "2", *words)
    assert isinstance(options, DistillOptions)
    return options


def test_an_old_run_is_the_same_run() -> None:
    """What came later is in its identity only where it is used."""
    later = {"teacher_from", "teacher_decay", "teacher_aliases", "temperature_logit"}
    assert not later & of().identity().keys() and not later & of("--teacher", "ema").to_dict().keys()
    assert of("--teacher", "ema", "--teacher-decay", "0.99").identity()["teacher_decay"] == 0.99


@pytest.mark.parametrize(
    ("word", "parameters", "flops", "words"),
    [
        ("on", 20, 110, "+2.0% parameters, +10.0% FLOPs"),
        ("separate", 1020, 200, "+2.0% parameters and a second VAR"),
        ("copies", 220, 140, "+22.0% parameters, +40.0% FLOPs"),
        ("ema", 20, 140, "+2.0% parameters and an averaged VAR that no optimizer holds, +40.0% FLOPs"),
        ("frozen", 0, 140, "a second VAR that is not trained, +40.0% FLOPs"),
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
    still = {"ema": 1000, "frozen": 1020}.get(word, 0)
    assert kind.parameters_still(COUNTS) == still and kind.saved == (word != "frozen")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--teacher-decay 0.9", "--teacher-decay 0.9 is of --teacher ema, not of on"),
        ("--teacher frozen", "--teacher frozen needs --teacher-from RUN"),
        ("--teacher ema --teacher-from runs/x", "--teacher-from runs/x is of --teacher frozen, not of ema"),
        ("--teacher ema --parallel fsdp", "--teacher ema averages whole weights"),
        ("--teacher off --teacher-aliases other", "but --teacher is off"),
        ("--teacher-aliases none", "makes --teacher on no teacher (the teacher is then the student itself)"),
        ("--teacher separate --teacher-aliases none", "makes --teacher separate no teacher"),
        ("--teacher copies --teacher-aliases none", "makes --teacher copies no teacher"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        check_options(of(*words.split()))
    said = str(error.value)
    assert sentence in said and "\n" not in said and said.endswith(".")


def test_another_image_needs_two_in_a_micro_batch() -> None:
    options = of("--teacher-aliases", "other", "--batch-size", "8", "--accumulate", "2")
    check_shown(options, processes=2)
    with pytest.raises(UsageError, match="--batch-size 8 in 2 micro-batches on 4 processes leaves one image in each"):
        check_shown(options, processes=4)
    check_shown(of("--teacher-aliases", "constant", "--batch-size", "8", "--accumulate", "8"), processes=1)


def test_what_a_teacher_is_shown() -> None:
    own = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert shown_in_training("own", own) is own
    assert shown_in_training("other", own).tolist() == [[5, 6], [1, 2], [3, 4]]
    assert shown_in_training("constant", own).tolist() == [[0, 0]] * 3
    with pytest.raises(ValueError, match="one image has no other"):
        shown_in_training("other", own[:1])
