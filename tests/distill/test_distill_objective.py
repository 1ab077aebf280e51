"""The objective and its validation: a teacher that can learn from alias tokens does, and the controls show that it did."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, inside, small_vae
from torch import Tensor

from patches import Upstream, load_upstream, patched
from patches.checkpointed_block import Checkpointed
from refocus_ext.distill.objective import DistillObjective, DistillWeights
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import TeacherSettings
from refocus_ext.distill.teacher.kinds import teacher_class
from refocus_ext.distill.teacher.separate import SeparateTeacher
from refocus_ext.distill.validation import (
    SHOWN,
    DistillReport,
    ValidationTokens,
    _sums,
    constant_and_other,
    evaluating,
    shares,
    validate,
)
from refocus_ext.engine.devices import kind_of, rewound
from refocus_ext.engine.distributed import World

CODES = 6
CLASSES = CODES + 1
ALONE = World(0, 1, torch.device("cpu"))
GEOMETRY = TeacherGeometry(width=64, code_dim=4, grids=(1, 2), patch_nums=PATCH_NUMS, states=(0, 1, 1, 2), blocks=2)


class Embedding:
    """Random but fixed tables in place of trained tokenizers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table_VC = torch.randn(64, 8, generator=generator)
        self.codes_AC = torch.randn(CODES, 4, generator=generator)

    def structure(self, idx_BL: Tensor) -> Tensor:
        return self.table_VC[idx_BL[:, 1:]] * 0.1

    def alias(self, alias_BT: Tensor) -> list[Tensor]:
        return list(self.codes_AC[alias_BT].split([1, 4], dim=1))


def tokens(count: int, seed: int, told: float = 0.0) -> ValidationTokens:
    """Structure tokens of scales 2 to 4 that the alias token of state 1 tells, code a -> token 7 a, and for a share
    `told` of the images the class as well: a -> class a, where the others are all of the last class."""
    generator = torch.Generator().manual_seed(seed)
    alias_NT = torch.randint(CODES, (count, 5), generator=generator)
    structure_NL = (7 * alias_NT[:, :1]).expand(-1, 30).clone()
    structure_NL[:, 0] = 3
    label_N = torch.where(torch.rand(count, generator=generator) < told, alias_NT[:, 0], CODES)
    return ValidationTokens(structure_NL, alias_NT, label_N)


def build(upstream: Upstream, kind: str = "on", weights: DistillWeights | None = None) -> DistillObjective:
    def var() -> Any:
        torch.manual_seed(0)
        return upstream.build_var(small_vae(upstream), depth=3, embed_dim=64, num_heads=2, num_classes=CLASSES)

    student, word, reads = var(), kind.removesuffix(" without aliases"), "without" not in kind
    chosen, teacher = teacher_class(word), None
    if chosen is not None:
        teacher = chosen.build(GEOMETRY, var, 1, TeacherSettings(aliases=reads))
    return DistillObjective(student, teacher, weights or DistillWeights())


@pytest.mark.parametrize("kind", ["on", "separate"])
def test_the_gap_comes_from_the_images_own_alias_tokens(kind: str) -> None:
    """With one implementation of VAR; both have the same gradients (`tests/vanilla_var/`)."""
    upstream = load_upstream()
    objective, embed, train = build(upstream, kind, DistillWeights(0, 0)), Embedding(), tokens(64, seed=1, told=0.6)
    inside(objective.var).word_embed.weight.data.zero_()  # the student sees no earlier token: only aliases could tell
    inside(objective.var).word_embed.requires_grad_(False)
    if isinstance(objective.teacher, SeparateTeacher):
        inside(objective.teacher.var).word_embed.weight.data.zero_()
        inside(objective.teacher.var).word_embed.requires_grad_(False)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for step in range(80):
        torch.manual_seed(step)
        loss, _ = objective(
            train.label_N, embed.structure(train.structure_NL), train.structure_NL, embed.alias(train.alias_NT)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = tokens(33, seed=2)
    report = validate(objective, held_out, embed, ALONE, batch=8)  # type: ignore[arg-type]
    assert report.gap() > 0.5 and report.gap() > 10 * report.gap_error
    assert report.gap("other") < 0.1 and report.gap("constant") < 0.1, "no capacity of its own helps"
    assert report.gap_S()[0] == pytest.approx(0, abs=0.05), "the first scale sees no alias"
    assert len(report.lines(PATCH_NUMS)) == 8 and "beyond both controls" in report.verdict()
    assert "no measurable gain" in validate(build(upstream, kind), held_out, embed, ALONE, batch=8).verdict()  # type: ignore[arg-type]


def test_validation_is_a_plain_mean_over_images(upstream: Upstream) -> None:
    objective, embed, held_out = build(upstream), Embedding(), tokens(7, seed=3)
    torch.nn.init.normal_(objective.teacher.cross[0].to_out.weight)  # type: ignore[union-attr, index]
    report = validate(objective, held_out, embed, ALONE, batch=3)  # type: ignore[arg-type]
    other = held_out.alias_NT.roll(3, dims=0)
    with torch.no_grad(), evaluating(objective):
        label, idx = held_out.label_N, held_out.structure_NL
        out = objective.teacher(objective.var, label, embed.structure(idx), embed.alias(held_out.alias_NT))  # type: ignore[misc]
        wrong = objective.teacher(objective.var, label, embed.structure(idx), embed.alias(other))  # type: ignore[misc]
    ce = lambda logits: torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx.flatten()).item()  # noqa: E731
    assert report.images == 7
    assert report.ce_mean["student"] == pytest.approx(ce(out.student_logits), rel=1e-5)
    assert report.ce_mean["teacher"] == pytest.approx(ce(out.teacher_logits), rel=1e-5)
    assert report.ce_mean["other"] == pytest.approx(ce(wrong.teacher_logits), rel=1e-5)
    nll = -out.student_logits.log_softmax(-1).gather(-1, idx[..., None])[..., 0]
    nll_t = -out.teacher_logits.log_softmax(-1).gather(-1, idx[..., None])[..., 0]
    gap_N = (nll - nll_t).mean(1)
    assert report.gap_error == pytest.approx(float(gap_N.std() / 7**0.5), rel=1e-3)
    nll_o = -wrong.teacher_logits.log_softmax(-1).gather(-1, idx[..., None])[..., 0]
    assert report.control_error["other"] == pytest.approx(float((nll_o - nll_t).mean(1).std() / 7**0.5), rel=1e-3)
    p, q, other_q = (each.softmax(-1) for each in (out.student_logits, out.teacher_logits, wrong.teacher_logits))
    token = torch.nn.functional.one_hot(idx, p.shape[-1])
    of_tokens = (token - p).square().sum(-1).mean().item()
    for name, targets in (("teacher", q), ("other", other_q)):
        expected = (targets - p).square().sum(-1).mean().item() / of_tokens
        assert report.target_variance[name] == pytest.approx(expected, rel=1e-4), name
    assert f"{100 * report.target_variance['teacher']:.1f}% of the variance" in report.lines((1, 2, 3, 4))[-1]
    assert report.ce["student"] == pytest.approx([float(p.mean()) for p in nll.split([1, 4, 9, 16], dim=1)], rel=1e-5)


def test_a_control_is_told_apart_by_its_own_standard_error() -> None:
    """A gap may be certain while its lead over a control is not."""
    rows = {name: [4.0] for name in ("student", "teacher", "other", "constant")}
    mean = {"student": 4.0, "teacher": 3.95, "other": 3.98, "constant": 4.0}
    report = partial(DistillReport, ce=rows, acc=rows, ce_mean=mean, gap_error=0.01, images=64)
    assert "gain the teacher 0.030 nats" in report(control_error={"other": 0.01, "constant": 0.01}).verdict()
    assert "no measurable gain" in report(control_error={"other": 0.02, "constant": 0.01}).verdict()


def test_autocast_does_not_round_the_sums() -> None:
    """A product under autocast would be in bf16: 64 gaps of 0.026 would come out as 0.031."""
    generator = torch.Generator().manual_seed(0)
    nll = 4 + 0.1 * torch.rand(2, 64, 5, generator=generator)
    nll[1] = nll[0] - 0.026
    with torch.autocast("cpu", torch.bfloat16):
        sums = _sums(nll, torch.zeros(2, 64, 5), torch.zeros(2, 64, 5), torch.ones(64), [(0, 1), (1, 5)])
    assert sums.dtype == torch.float64
    assert (sums[1, -5] / 64).item() == pytest.approx(0.026, abs=1e-6)
    assert (sums[0, -7] / 64).item() == pytest.approx(nll[0].double().mean().item(), rel=1e-12)


def test_validation_leaves_the_mode_and_the_label_drop(upstream: Upstream) -> None:
    objective = build(upstream).train()
    with evaluating(objective):
        assert not objective.training and objective.var.cond_drop_rate == 0
    assert objective.training and objective.var.cond_drop_rate == 0.1


def test_every_process_scores_its_share_once() -> None:
    for count, size in ((7, 2), (4, 4), (5, 3)):
        seen: list[int] = []
        lengths = set()
        for rank in range(size):
            batches = list(shares(count, World(rank, size, torch.device("cpu")), batch=2))
            lengths.add(len(batches))
            seen += [int(i) for picks, weight_B in batches for i, w in zip(picks, weight_B, strict=True) if w]
        assert sorted(seen) == list(range(count)) and len(lengths) == 1, "equally many passes, or sharding would hang"


def test_controls() -> None:
    own, other, constant = constant_and_other(torch.tensor([[1, 1], [2, 1], [3, 4]]))
    assert (
        other.tolist() == [[3, 4], [1, 1], [2, 1]] and constant.unique().tolist() == [1] and own[0].tolist() == [1, 1]
    )
    assert SHOWN == ("teacher", "other", "constant")
    _, _, zero = constant_and_other(torch.tensor([[1, 1], [2, 1]]), constant=0)
    assert zero.tolist() == [[0, 0], [0, 0]], "that of a teacher which was trained with it"


def test_a_separate_teacher_repeats_the_students_random_numbers() -> None:
    torch.manual_seed(3)
    cpu = torch.device("cpu")
    state = kind_of(cpu).random_state(cpu)
    first, second = torch.rand(2), torch.rand(2)
    torch.manual_seed(3)
    torch.rand(2)
    with rewound(state, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(2), second)


@pytest.mark.parametrize("kind", ["on", "separate", "off", "copies", "ema", "ema without aliases", "frozen"])
def test_gradients_stay_with_their_owner(upstream: Upstream, kind: str) -> None:
    objective, embed, batch = build(upstream, kind, DistillWeights(0, 0)), Embedding(), tokens(4, seed=1)
    torch.manual_seed(9)
    loss, terms = objective(
        batch.label_N, embed.structure(batch.structure_NL), batch.structure_NL, embed.alias(batch.alias_NT)
    )
    loss.backward()
    expected = build(upstream, "off")
    torch.manual_seed(9)
    expected(batch.label_N, embed.structure(batch.structure_NL), batch.structure_NL, [])[0].backward()
    for (name, ours), theirs in zip(inside(objective.var).named_parameters(), expected.var.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad), name
    if kind == "separate":
        assert all(p.grad is not None for p in objective.teacher.var.parameters())  # type: ignore[union-attr]
    if kind in ("on", "separate", "copies"):
        assert terms["ce_teacher"] == terms["ce_student"], "the same label drop and stochastic depth"
    teacher = objective.teacher
    if teacher is not None:
        trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
        assert {name for name, p in teacher.named_parameters() if p.grad is not None} == trained, (
            "DistributedDataParallel waits for a gradient of each"
        )
        assert bool(trained) == teacher.learns == (kind not in ("ema without aliases", "frozen"))
        assert (loss > terms["ce_student"]) == teacher.learns, (
            "a cross-entropy that trains nothing is no part of the loss"
        )


def test_a_teacher_without_alias_tokens_has_no_controls(upstream: Upstream) -> None:
    objective, embed, held_out = build(upstream, "ema without aliases"), Embedding(), tokens(7, seed=3)
    report = validate(objective, held_out, embed, ALONE, batch=3)  # type: ignore[arg-type]
    assert set(report.ce_mean) == {"student", "teacher"} and report.gap() == 0, "the average starts as the student"
    assert set(report.flat()) & {"gap_teacher", "gap_other"} == {"gap_teacher"}
    assert len(report.lines(PATCH_NUMS)) == 7 and "no better than the student" in report.verdict()


def test_checkpointed_blocks_give_the_same_bits(upstream: Upstream) -> None:
    embed, batch = Embedding(), tokens(4, seed=1)
    grads, state_dicts = [], []
    for checkpointing in (False, True):
        objective = build(upstream)
        for block in inside(objective.var).blocks[1:]:
            block.drop_path.drop_prob = 0.4
        with (
            patched(objective.var, Checkpointed(keep=2))
            if checkpointing
            else patched(objective.var, Checkpointed(keep=3))
        ):
            torch.manual_seed(2)
            args = (batch.label_N, embed.structure(batch.structure_NL), batch.structure_NL, embed.alias(batch.alias_NT))
            objective(*args)[0].backward()
            state_dicts.append(list(objective.var.state_dict()))
        grads.append([p.grad for p in objective.var.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)) and state_dicts[0] == state_dicts[1]


@pytest.mark.parametrize("kind", ["on", "copies", "separate", "ema"])
def test_the_whole_of_eq_13(upstream: Upstream, kind: str) -> None:
    """CE + lambda_feat sum_l |LN(h) - LN(h_teacher)|^2 + lambda_logit KL(teacher || student), written out from the two passes,
    and the teacher's own cross-entropy, which the paper does not print."""
    objective, embed = build(upstream, kind, DistillWeights(feat=0.7, logit=0.3)), Embedding()
    objective.eval()
    objective.var.cond_drop_rate = 0.0
    if objective.teacher and objective.teacher.own_var is not None:
        objective.teacher.own_var.cond_drop_rate = 0.0
    data = tokens(5, seed=2)
    with torch.no_grad():
        for parameter in objective.parameters():  # an untouched teacher is its student, and both terms are 0
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
        x_BLC, alias_K = embed.structure(data.structure_NL), embed.alias(data.alias_NT)
        loss, terms = objective(data.label_N, x_BLC, data.structure_NL, alias_K)
        tape, taught = objective.passes(data.label_N, x_BLC, alias_K)
        assert taught is not None and tape.hidden_BLC is not None
        student = objective.student_head(tape)(tape.hidden_BLC, slice(None)).double()
        teacher = taught.head(taught.features[-1], slice(None)).double()
        p, q, target = student.log_softmax(-1), teacher.log_softmax(-1), data.structure_NL[..., None]
        kl = (q.exp() * (q - p)).sum(-1).mean()
        pairs = list(zip([block.out_BLC for block in tape.blocks], taught.features, strict=True))
        feat = sum((standard(a) - standard(b)).square().mean() for a, b in pairs)
        ce, ce_teacher = (-log.gather(-1, target).mean() for log in (p, q))
    expected = ce + 0.7 * feat + 0.3 * kl + ce_teacher
    assert float(kl) > 1e-4 and float(feat) > 1e-4
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["kl"].double(), kl, rtol=1e-3, atol=0)


def standard(h_BLC: Tensor) -> Tensor:
    """Mean 0 and mean square 1 over channels."""
    h = h_BLC.double()
    h = h - h.mean(-1, keepdim=True)
    return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
