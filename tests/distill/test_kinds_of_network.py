"""The teachers with weights of their own: the student's average, copies of its last blocks, and one that another run trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import inside
from test_teacher import CLASSES, MODES, B, batch, build_var, draw_weights, geometry, seeded
from torch import Tensor

from patches import Upstream
from refocus_ext.distill.networks import adamw
from refocus_ext.distill.teacher.copies import CopiesTeacher
from refocus_ext.distill.teacher.ema import EmaTeacher
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherPass, TeacherSettings
from refocus_ext.distill.teacher.separate import SeparateTeacher
from refocus_ext.distill.teacher.still import FrozenTeacher
from refocus_ext.errors import UsageError

ALL = slice(None)
NOT_SKIPPED, SKIPPED = torch.tensor(False), torch.tensor(True)


def ema_of(upstream: Upstream, decay: float = 0.999, aliases: bool = True) -> EmaTeacher:
    return EmaTeacher.build(geometry(), lambda: build_var(upstream), 1, TeacherSettings(aliases, decay))


def logits_of(taught: TeacherPass) -> Tensor:
    return taught.head(taught.features[-1], ALL)


# ------------------------------------------------------------------------------------------------ the average


def test_the_average_is_the_formula(upstream: Upstream) -> None:
    """After three steps, one of them skipped: d = min(decay, (1 + t) / (10 + t))."""
    teacher, student = ema_of(upstream, decay=0.2), build_var(upstream)
    expected = [parameter.clone() for parameter in inside(teacher.var).parameters()]
    for step, (skipped, d) in enumerate(((NOT_SKIPPED, 2 / 11), (SKIPPED, 1.0), (NOT_SKIPPED, 0.2))):
        draw_weights(student, seed=step)
        teacher.follow(student, step, skipped)
        expected = [d * old + (1 - d) * new.detach() for old, new in zip(expected, student.parameters(), strict=True)]
    for ours, theirs in zip(inside(teacher.var).parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_leaves_the_bits(upstream: Upstream) -> None:
    teacher, student = ema_of(upstream), build_var(upstream)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    draw_weights(student, seed=8)
    teacher.follow(student, 5, SKIPPED)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher.follow(student, 5, NOT_SKIPPED)
    assert not torch.equal(teacher.state_dict()["var.head.weight"], before["var.head.weight"])


@MODES
@pytest.mark.parametrize("aliases", [True, False])
def test_it_sees_every_label_drops_nothing_and_draws_nothing(upstream: Upstream, train: bool, aliases: bool) -> None:
    """Of a student that never sees its label; and the random numbers that follow are those after the student's pass alone."""
    student, teacher = build_var(upstream).train(train), ema_of(upstream, aliases=aliases).train(train)
    student.cond_drop_rate = 1.0
    label_B, x_BLC, alias_K = batch()
    expected = build_var(upstream).eval()
    expected.cond_drop_rate = 0.0
    (tape, taught), after = seeded(lambda: (teacher.passes(student, label_B, x_BLC, alias_K), torch.rand(1)))
    stock, stock_after = seeded(lambda: (student(label_B, x_BLC), torch.rand(1)))
    assert torch.equal(student.get_logits(tape.hidden_BLC, tape.cond_BD), stock) and torch.equal(after, stock_after)
    assert len(taught.features) == len(tape.blocks) == 2
    assert torch.equal(logits_of(taught), expected(label_B, x_BLC)), "new gates add nothing"
    assert not torch.equal(logits_of(taught), expected(torch.full((B,), CLASSES), x_BLC))
    assert not inside(teacher.var).training and teacher.training == train


def test_its_gates_learn_through_the_averaged_blocks(upstream: Upstream) -> None:
    student, teacher = build_var(upstream), ema_of(upstream)
    assert teacher.aliases is not None
    draw_weights(teacher.aliases, seed=3)
    _, taught = teacher.passes(student, *batch())
    logits_of(taught).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in teacher.aliases.parameters())
    assert all(p.grad is None for p in (*inside(teacher.var).parameters(), *student.parameters()))
    held = {id(p) for group in adamw(teacher).param_groups for p in group["params"]}
    assert held == {id(p) for p in teacher.aliases.parameters()}, "the average has no optimizer state"


# ------------------------------------------------------------------------------------------------ copies


@MODES
def test_copies_start_as_the_student_and_train_apart_from_it(upstream: Upstream, train: bool) -> None:
    student = build_var(upstream).train(train)
    teacher = CopiesTeacher.build(geometry(), lambda: build_var(upstream), 1).train(train)
    label_B, x_BLC, alias_K = batch()
    tape, taught = seeded(teacher.passes, student, label_B, x_BLC, alias_K)
    stock = seeded(student, label_B, x_BLC)
    assert torch.equal(logits_of(taught), stock), "with the same labels and branches dropped"
    assert all(torch.equal(a, b.out_BLC) for a, b in zip(taught.features, tape.blocks, strict=True))
    logits_of(taught).square().mean().backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in teacher.parameters())
    draw_weights(teacher.blocks, seed=7)
    changed = teacher.taught_again(student, tape, label_B, x_BLC, alias_K)
    assert not torch.equal(logits_of(changed), stock) and torch.equal(seeded(student, label_B, x_BLC), stock)


def test_copies_learn_at_the_students_rate_and_their_gates_at_their_own(upstream: Upstream) -> None:
    teacher = CopiesTeacher.build(geometry(), lambda: build_var(upstream), 1)
    rate_of = {id(p): group["lr_sc"] for group in adamw(teacher, 0.1).param_groups for p in group["params"]}
    assert {rate_of[id(p)] for p in teacher.blocks.parameters()} == {1.0}
    assert {rate_of[id(p)] for p in teacher.aliases.parameters()} == {0.1}
    assert len(rate_of) == len(list(teacher.parameters()))


# ------------------------------------------------------------------------------------------------ another run's


@pytest.mark.parametrize("kind", [SeparateTeacher, EmaTeacher])
def test_a_frozen_teacher_is_the_trained_one(upstream: Upstream, tmp_path: Path, kind: Any) -> None:
    """Its predictions, with the true labels, and nothing of it can be trained."""
    trained: AliasTeacher = kind.build(geometry(), lambda: build_var(upstream), 1)
    draw_weights(trained, seed=5)
    torch.save(trained.state_dict(), tmp_path / "teacher.pth")
    settings = TeacherSettings(weights=tmp_path / "teacher.pth")
    frozen = FrozenTeacher.build(geometry(), lambda: build_var(upstream), 2, settings)
    assert not frozen.learns and not frozen.saved and frozen.alias_embedding is None
    student, args = build_var(upstream).train(), batch()
    trained.eval()
    inside(trained.var).cond_drop_rate = 0.0
    expected = trained.passes(build_var(upstream).eval(), *args)[1]
    found = frozen.train().passes(student, *args)[1]
    assert torch.equal(logits_of(found), logits_of(expected)) and not logits_of(found).requires_grad
    torch.save(inside(trained.var).state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(UsageError, match=r"teacher\.pth does not fit the run's configuration"):
        FrozenTeacher.build(geometry(), lambda: build_var(upstream), 2, settings)
