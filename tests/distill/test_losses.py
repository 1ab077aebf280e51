"""Eq. 13 by chunks against the formula as it is written: values, gradients, memory, and what reaches whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from refocus_ext.distill.losses import BeginEnds, Head, distillation_loss, feature_distance, var_report

BEGIN_ENDS = ((0, 1), (1, 5), (5, 14))
B, L, V, C = 3, 14, 11, 6


def logits(
    seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (B, L, V), gain: float = 3
) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (gain * noise).to(dtype).requires_grad_()


def codes(shape: tuple[int, int] = (B, L), vocab: int = V) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(9))


def plain(student: Tensor, teacher: Tensor, targets: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 13's logit terms as they are written."""
    vocab = student.shape[-1]

    def ce(x: Tensor) -> Tensor:
        return F.cross_entropy(x.reshape(-1, vocab), targets.reshape(-1))

    log_p, log_q = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    kl = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1).mean()
    terms = {"ce_student": ce(student), "ce_teacher": ce(teacher), "kl": kl}
    return terms["ce_student"] + kl_weight * kl + terms["ce_teacher"], terms


def by_token(head: Callable[[Tensor], Tensor]) -> Head:
    """A head that does not depend on the image."""
    return lambda h_bLC, images: head(h_bLC)


def on_logits(
    student: Tensor, teacher: Tensor | None, targets: Tensor, begin_ends: BeginEnds, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with logits for hidden states, and heads that leave them as they are."""
    head = None if teacher is None else by_token(identity)
    return distillation_loss(
        student, teacher, targets, begin_ends, student_head=by_token(identity), teacher_head=head, **options
    )


def identity(x: Tensor) -> Tensor:
    return x


# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_softened_distributions(temperature: float, chunk: int) -> None:
    """T^2 KL of logits / T; both cross-entropies, and what reaches the teacher, are those of the logits."""
    student, teacher = logits(0, torch.float64), logits(1, torch.float64)
    soft = plain(student / temperature, teacher / temperature, codes(), 0.0)[1]["kl"] * temperature**2
    expected = plain(student, teacher, codes(), 0.0)[0] + 0.7 * soft
    wanted = torch.autograd.grad(expected, (student, teacher))
    total, found = on_logits(student, teacher, codes(), BEGIN_ENDS, kl_weight=0.7, chunk=chunk, temperature=temperature)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found["kl"], soft.detach())
    for ours, theirs in zip(torch.autograd.grad(total, (student, teacher)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_cross_entropy_that_trains_nothing_is_reported_alone() -> None:
    student, teacher = logits(0), logits(1).detach()
    whole, terms = on_logits(student, teacher, codes(), BEGIN_ENDS)
    total, found = on_logits(student, teacher, codes(), BEGIN_ENDS, teacher_learns=False)
    torch.testing.assert_close(total, whole - terms["ce_teacher"])
    assert torch.equal(found["ce_teacher"], terms["ce_teacher"])


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_equals_the_plain_formula_and_its_gradients(chunk: int) -> None:
    expected, terms = plain(logits(0), logits(1), codes(), 0.5)
    wanted = torch.autograd.grad(plain(s := logits(0), t := logits(1), codes(), 0.5)[0], (s, t))
    student, teacher = logits(0), logits(1)
    total, found = on_logits(student, teacher, codes(), BEGIN_ENDS, kl_weight=0.5, chunk=chunk)
    gradients = torch.autograd.grad(total, (student, teacher))
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for name, value in terms.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_realistic_vocabulary_in_fp32_is_as_exact_as_the_plain_formula() -> None:
    shape, targets = (2, 40, 8192), codes((2, 40), 8192)
    exact_s, exact_t = logits(0, torch.float64, shape), logits(1, torch.float64, shape)
    plain(exact_s, exact_t, targets, 0.5)[0].backward()
    student, teacher = logits(0, shape=shape), logits(1, shape=shape)
    total, _ = on_logits(student, teacher, targets, [(0, 40)], kl_weight=0.5)
    total.backward()
    for ours, exact in ((student, exact_s), (teacher, exact_t)):
        assert ours.grad is not None and exact.grad is not None
        assert (ours.grad.double() - exact.grad).norm() / exact.grad.norm() < 1e-6


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_gradcheck_where_the_teacher_is_held(kl_weight: float) -> None:
    """The student's gradient is that of the value with the teacher fixed; the teacher's is that of its CE alone."""
    ends, targets = ((0, 1), (1, 4)), codes((2, 4), 5)
    held, free = logits(1, torch.float64, (2, 4, 5)), logits(0, torch.float64, (2, 4, 5))

    def of_student(x: Tensor) -> Tensor:
        return on_logits(x, held.detach(), targets, ends, kl_weight=kl_weight, chunk=3)[0]

    def of_teacher(x: Tensor) -> Tensor:
        return on_logits(free.detach(), x, targets, ends, kl_weight=0.0, chunk=3)[0]

    assert torch.autograd.gradcheck(of_student, (free,))
    assert torch.autograd.gradcheck(of_teacher, (held,))


def test_the_kl_does_not_move_the_teacher() -> None:
    def gradient(kl_weight: float) -> Tensor:
        student, teacher = logits(0), logits(1)
        total, _ = on_logits(student, teacher, codes(), BEGIN_ENDS, kl_weight=kl_weight)
        return torch.autograd.grad(total, teacher)[0]

    assert torch.equal(gradient(0.0), gradient(7.0))


@pytest.mark.parametrize("broken", [False, True])
def test_without_kl_the_student_learns_as_if_there_were_no_teacher(broken: bool) -> None:
    teacher = logits(1).detach()
    if broken:
        teacher[0, 0, 0] = torch.nan
    alone, beside = logits(0), logits(0)
    on_logits(alone, None, codes(), BEGIN_ENDS)[0].backward()
    on_logits(beside, teacher, codes(), BEGIN_ENDS, kl_weight=0.0)[0].backward()
    assert alone.grad is not None and beside.grad is not None
    assert torch.equal(alone.grad, beside.grad)


def test_a_teacher_equal_to_the_student_has_no_divergence() -> None:
    student, teacher = logits(0), logits(0)
    total, terms = on_logits(student, teacher, codes(), BEGIN_ENDS, kl_weight=3.0)
    assert terms["kl"] == 0 and torch.equal(terms["ce_student"], terms["ce_teacher"])
    total.backward()
    assert student.grad is not None and teacher.grad is not None
    torch.testing.assert_close(student.grad, teacher.grad, rtol=1e-5, atol=1e-8)


def test_terms_are_detached_and_hold_each_scale() -> None:
    student, teacher = logits(0), logits(1)
    total, terms = on_logits(student, teacher, codes(), BEGIN_ENDS, chunk=4)
    assert total.requires_grad and not any(term.requires_grad for term in terms.values())
    for name, x in (("student", student), ("teacher", teacher)):
        for scale, (begin, end) in enumerate(BEGIN_ENDS):
            part, target = x[:, begin:end].reshape(-1, V), codes()[:, begin:end].reshape(-1)
            torch.testing.assert_close(terms[f"ce_{name}_S"][scale], F.cross_entropy(part, target).detach())
            assert terms[f"acc_{name}_S"][scale] == (part.argmax(-1) == target).float().mean()
    sizes = torch.tensor([end - begin for begin, end in BEGIN_ENDS]) / L
    for name in ("ce_student", "ce_teacher", "acc_student", "acc_teacher", "kl"):
        torch.testing.assert_close((terms[f"{name}_S"] * sizes).sum(), terms[name])


def test_report_has_vars_names_and_numbers() -> None:
    student = logits(0)
    _, terms = on_logits(student, None, codes(), BEGIN_ENDS)
    report = var_report(terms, (1, 2, 3))
    assert set(report) == {"Lm", "Lt", "Accm", "Acct", "L_16", "L_32", "L_48", "acc_16", "acc_32", "acc_48"}
    tail, target = student[:, 5:].reshape(-1, V), codes()[:, 5:].reshape(-1)
    assert report["Lt"] == report["L_48"] == pytest.approx(F.cross_entropy(tail, target).item())
    assert report["Acct"] == pytest.approx(100 * (tail.argmax(-1) == target).float().mean().item())


def test_half_precision_logits_are_worked_on_in_fp32() -> None:
    student, teacher = logits(0, torch.bfloat16), logits(1, torch.bfloat16)
    total, terms = on_logits(student, teacher, codes(), BEGIN_ENDS)
    expected, _ = plain(student.float(), teacher.float(), codes(), 0.5)
    assert total.dtype == terms["kl"].dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    total.backward()
    assert student.grad is not None and student.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"begin_ends": ((0, 5),)}, "do not end at the 14 tokens"),
        ({"kl_weight": -1.0}, "must not be negative"),
        ({"targets": torch.zeros(B, L - 1, dtype=torch.long)}, "do not fit targets"),
        ({"teacher": torch.zeros(B, L, V + 1)}, "teacher logits"),
    ],
)
def test_misuse_is_refused(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "teacher": logits(1),
        "targets": codes(),
        "begin_ends": BEGIN_ENDS,
        "kl_weight": 0.5,
    } | change
    with pytest.raises(ValueError, match=message):
        on_logits(
            logits(0), options["teacher"], options["targets"], options["begin_ends"], kl_weight=options["kl_weight"]
        )


# ------------------------------------------------------------------------------------------------ hidden states and a head


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_from_hidden_equals_the_logits_form_down_to_the_head(chunk: int) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(C, V).double(), nn.Linear(C, V).double()
    hidden = (logits(0, torch.float64, (B, L, C)), logits(1, torch.float64, (B, L, C)))
    leaves = (*hidden, *ours.parameters(), *theirs.parameters())
    expected, terms = on_logits(ours(hidden[0]), theirs(hidden[1]), codes(), BEGIN_ENDS)
    wanted = torch.autograd.grad(expected, leaves)
    total, found = distillation_loss(
        *hidden, codes(), BEGIN_ENDS, student_head=by_token(ours), teacher_head=by_token(theirs), chunk=chunk
    )
    torch.testing.assert_close(torch.autograd.grad(total, leaves), wanted)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found, terms)


def test_from_hidden_without_a_teacher() -> None:
    hidden, head = logits(0, shape=(B, L, C)), nn.Linear(C, V)
    total, terms = distillation_loss(hidden, None, codes(), BEGIN_ENDS, student_head=by_token(head))
    assert "kl" not in terms and torch.allclose(total, terms["ce_student"])
    with pytest.raises(ValueError, match="give both teacher_BLC and teacher_head, or neither"):
        distillation_loss(hidden, hidden, codes(), BEGIN_ENDS, student_head=by_token(head))


def test_a_head_gets_the_condition_of_its_images() -> None:
    """One image at a time, each with its own bias."""
    bias_BV, hidden = logits(2, shape=(B, V)), logits(0)
    total, _ = distillation_loss(
        hidden, None, codes(), BEGIN_ENDS, student_head=lambda h, images: h + bias_BV[images, None], chunk=1
    )
    expected, _ = on_logits(hidden + bias_BV[:, None], None, codes(), BEGIN_ENDS)
    torch.testing.assert_close(total, expected)


# ------------------------------------------------------------------------------------------------ memory

SHAPE = (8, 680, 512)
COPY = 4 * 8 * 680 * 512  # bytes of one fp32 copy of the logits


def saved_bytes(loss: Callable[[], Tensor], given: tuple[Tensor, ...]) -> int:
    """Bytes the graph of `loss()` keeps for its backward pass, beside the tensors it was given."""
    kept = {x.untyped_storage().data_ptr(): 0 for x in given}

    def pack(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        total = loss()
        assert total.requires_grad
    return sum(kept.values())


def peak_bytes(step: Callable[[], object]) -> int:
    """The most memory that was allocated at once during `step()`, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    assert peak > 0
    return peak


def test_less_than_one_copy_of_the_logits_is_kept_for_backward() -> None:
    student, teacher, targets = logits(0, shape=SHAPE), logits(1, shape=SHAPE), codes(SHAPE[:2], 512)
    given = (student, teacher)
    ours = saved_bytes(lambda: on_logits(student, teacher, targets, [(0, 680)])[0], given)
    reference = saved_bytes(lambda: plain(student, teacher, targets, 0.5)[0], given)
    assert ours < 0.05 * COPY < 2 * COPY < reference


def test_peak_memory_from_hidden_states_has_no_copy_of_the_logits_at_all() -> None:
    targets, head, frozen = codes(SHAPE[:2], 512), nn.Linear(16, 512), nn.Linear(16, 512).requires_grad_(False)
    hidden = (logits(0, shape=(8, 680, 16)), logits(1, shape=(8, 680, 16)))

    def step() -> object:
        heads: Any = {"student_head": by_token(head), "teacher_head": by_token(frozen)}
        total, _ = distillation_loss(*hidden, targets, [(0, 680)], chunk=256, **heads)
        return torch.autograd.grad(total, (*hidden, *head.parameters()))

    def reference() -> object:
        total, _ = plain(head(hidden[0]), frozen(hidden[1]), targets, 0.5)
        return torch.autograd.grad(total, (*hidden, *head.parameters()))

    assert peak_bytes(reference) > 4 * COPY
    assert peak_bytes(step) < 0.8 * COPY  # of which the two hidden states' gradients and head outputs by chunks


# ------------------------------------------------------------------------------------------------ features


def test_feature_distance_is_the_mean_square_after_layer_norm_summed_over_blocks() -> None:
    ours = [logits(seed, torch.float64, (B, L, C)) for seed in (0, 1)]
    theirs = [logits(seed, torch.float64, (B, L, C)) for seed in (2, 3)]
    total, terms = feature_distance(ours, theirs)

    def standardized(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    pairs = zip(ours, theirs, strict=True)
    expected = torch.stack([(standardized(h) - standardized(t)).square().mean() for h, t in pairs])
    torch.testing.assert_close(terms["feat_M"], expected.detach())
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(terms["feat_norm_teacher_M"][1], theirs[1].detach().square().sum(-1).sqrt().mean())
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert all(h.grad is not None for h in ours) and all(t.grad is None for t in theirs)


def test_feature_distance_ignores_scale_and_shift_and_is_zero_for_equals() -> None:
    ours = [logits(0, torch.float64, (B, L, C))]
    assert feature_distance(ours, ours)[0] == 0
    assert feature_distance(ours, [5 * ours[0] + 2])[0] < 1e-10
    assert torch.autograd.gradcheck(lambda h: feature_distance([h], [logits(1, torch.float64, (B, L, C))])[0], ours)


def test_feature_distance_as_printed_is_a_plain_sum() -> None:
    """Eq. 13: |h - t|^2 over tokens and channels; its gradient in h is 2 (h - t), divided by the images."""
    ours = [logits(i, shape=(B, L, C)) for i in range(2)]
    theirs = [logits(i + 2, shape=(B, L, C)) for i in range(2)]
    total, terms = feature_distance(ours, theirs, distance="printed")
    by_hand = [
        sum(float((h[b] - t[b]).detach().square().sum()) for b in range(B)) / B
        for h, t in zip(ours, theirs, strict=True)
    ]
    assert terms["feat_M"].tolist() == pytest.approx(by_hand, rel=1e-5) and total.item() == pytest.approx(
        sum(by_hand), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(total, ours[0])
    torch.testing.assert_close(gradient, 2 * (ours[0] - theirs[0]).detach() / B)


def test_feature_distance_of_half_precision_is_fp32_and_needs_equal_blocks() -> None:
    h = logits(0, torch.bfloat16, (B, L, C))
    assert feature_distance([h], [h])[0].dtype == torch.float32
    with pytest.raises(ValueError, match="1 student and 2 teacher blocks"):
        feature_distance([h], [h, h])
