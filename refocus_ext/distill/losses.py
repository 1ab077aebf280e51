"""Eq. 13, stage 2's objective: cross-entropy, logit distillation and feature distillation, without copies of the logits.

Shapes: B batch, L tokens, V codes, C channels, S token scales, M distilled blocks; `l` is a chunk of tokens.

One fp32 copy of the logits is 0.7 GB at B=32, L=680, V=8192, and the plain formula keeps about six of them until the
backward pass. This version runs over chunks of tokens, keeps two numbers per token (each row's log-sum-exp) and writes
its gradient directly. It starts from the input of the head, so that the whole logits never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from refocus_ext.engine.devices import kind_of

BeginEnds = Sequence[tuple[int, int]]
Terms = dict[str, Tensor]
Head = Callable[
    [Tensor, slice], Tensor
]  # hidden states (b,L,C) of some images of the batch, and which -> logits (b,L,V)


def distillation_loss(
    student_BLC: Tensor,
    teacher_BLC: Tensor | None,
    targets_BL: Tensor,
    begin_ends: BeginEnds,
    *,
    student_head: Head,
    teacher_head: Head | None = None,
    kl_weight: float = 0.5,
    chunk: int | None = None,
    temperature: float = 1.0,
    teacher_learns: bool = True,
) -> tuple[Tensor, Terms]:
    """CE_student + kl_weight * KL(sg p_tea || p_stu) + CE_teacher, each the mean over all B*L tokens (eq. 13).

    The student's logits get the gradient of the first two terms, the teacher's of the third only. Logits exist for a few
    images at a time (slices of a batch are contiguous): the heads run again in the backward pass (one more C x V product per
    token), under the same autocast state as in the forward pass.

    Args:
        student_BLC, teacher_BLC: inputs of the heads; without a teacher only CE_student remains.
        targets_BL: codebook indices, int64.
        begin_ends: first token and end of each scale, as `VAR.begin_ends`; used in the report only.
        student_head, teacher_head: see `Head`; token by token and without randomness:
            `lambda h_bLC, images: var.get_logits(h_bLC, cond_BD[images])`; the teacher's must use detached weights if it shares
            the student's.
        kl_weight: lambda_logit; at 0 the student's gradient is bit-identical to that of CE_student.
        chunk: tokens at a time (at least one image); None: as many as suit the device.
        temperature: T; another one than 1 makes KL that of softmax(logits / T), times T^2.
        teacher_learns: whether CE_teacher is a part of the loss; it is reported all the same.

    Returns:
        (total, terms): the loss in fp32 (fp64 for fp64 logits), and detached ce_student, ce_teacher, kl (nats per token)
        and acc_student, acc_teacher (a share of 1), each beside its means per scale in NAME_S, (S,). Without a teacher
        only the student's two.
    """
    if (teacher_BLC is None) != (teacher_head is None):
        raise ValueError("give both teacher_BLC and teacher_head, or neither.")
    if student_BLC.shape[:2] != targets_BL.shape:
        raise ValueError(f"hidden states {tuple(student_BLC.shape)} do not fit targets {tuple(targets_BL.shape)}.")

    B, L = targets_BL.shape
    chunk = chunk or kind_of(student_BLC.device).tokens_at_once

    def piece(first: int, student: Tensor, teacher: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        images = slice(first, first + len(targets))
        student_logits = student_head(student, images)
        teacher_logits = teacher_head(teacher, images) if teacher_head and teacher is not None else None
        _check(student_logits, teacher_logits, targets, [(0, targets.shape[1])], kl_weight)
        return _Eq13.apply(student_logits, teacher_logits, targets, kl_weight, chunk, temperature, teacher_learns)

    _check_scales(L, begin_ends)
    step = max(1, chunk // L)
    firsts = range(0, B, step)
    teachers = teacher_BLC.split(step) if teacher_BLC is not None else [None] * len(firsts)
    pieces = zip(firsts, student_BLC.split(step), teachers, targets_BL.split(step), strict=True)
    results = [checkpoint(piece, *args, use_reentrant=False, preserve_rng_state=False) for args in pieces]
    sums, *parts = zip(*results, strict=True)
    terms = _TokenTerms._make(None if part[0] is None else torch.cat(part) for part in parts)
    return torch.stack(sums).sum() / targets_BL.numel(), _report(terms, begin_ends)


def feature_distance(
    student_MBLC: Sequence[Tensor], teacher_MBLC: Sequence[Tensor], eps: float = 1e-6, distance: str = "normalized"
) -> tuple[Tensor, Terms]:
    """Sum over M blocks of mean((LN(h_stu) - sg LN(h_tea))^2), LN a LayerNorm without parameters (eq. 13).

    LN removes the scale, which the student could change freely: shared weights would otherwise shrink or follow their
    own target.

    Args:
        student_MBLC, teacher_MBLC: the outputs of the same M blocks, (B,L,C) each.
        distance: "printed" is eq. 13 to the letter: |h_stu - sg h_tea|^2, summed over tokens and channels, the mean over images.

    Returns:
        (total, terms): the sum in fp32 or wider, and detached feat, feat_M, and feat_norm_student_M and
        feat_norm_teacher_M, the mean length of a token's vector before LN.
    """
    if len(student_MBLC) != len(teacher_MBLC) or not student_MBLC:
        raise ValueError(f"features of {len(student_MBLC)} student and {len(teacher_MBLC)} teacher blocks were given.")
    students = [_wide(h_BLC) for h_BLC in student_MBLC]
    teachers = [_wide(h_BLC.detach()) for h_BLC in teacher_MBLC]
    measure = DISTANCES[distance]
    distance_M = torch.stack([measure(h, t, eps) for h, t in zip(students, teachers, strict=True)])
    terms = {
        "feat": distance_M.detach().sum(),
        "feat_M": distance_M.detach(),
        "feat_norm_student_M": torch.stack([h.detach().norm(dim=-1).mean() for h in students]),
        "feat_norm_teacher_M": torch.stack([t.norm(dim=-1).mean() for t in teachers]),
    }
    return distance_M.sum(), terms


def var_report(terms: Mapping[str, Tensor], patch_nums: Sequence[int], patch_size: int = 16) -> Terms:
    """The numbers VAR logs, under VAR's names: Lm, Lt (mean, last scale), Accm, Acct, and L_ and acc_ of every scale's
    resolution in pixels. Losses in nats, accuracies in percent, all of the student; tensors ()."""
    scales = zip(patch_nums, terms["ce_student_S"].unbind(), (100 * terms["acc_student_S"]).unbind(), strict=True)
    report = {"Lm": terms["ce_student"], "Accm": 100 * terms["acc_student"]}
    for pn, loss, accuracy in scales:
        report |= {f"L_{pn * patch_size}": loss, f"acc_{pn * patch_size}": accuracy}
        report |= {"Lt": loss, "Acct": accuracy}
    return report


# ------------------------------------------------------------------------------------------------ the formula by chunks


class _TokenTerms(NamedTuple):
    """Each term at each token, (B,L); the teacher's terms are None without a teacher."""

    ce_student: Tensor
    acc_student: Tensor
    ce_teacher: Tensor | None = None
    acc_teacher: Tensor | None = None
    kl: Tensor | None = None


class _Eq13(torch.autograd.Function):
    """Sum over tokens of eq. 13's logit terms, and each term at each token (not differentiable).

    With log p = x - lse(x): d CE / dx = p - onehot, and d KL(p_tea || p_stu) / dx_stu = p_stu - p_tea.
    Another temperature than 1 computes the softened probabilities anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_BLV: Tensor,
        teacher_BLV: Tensor | None,
        targets_BL: Tensor,
        kl_weight: float,
        chunk: int,
        temperature: float,
        teacher_learns: bool,
    ) -> tuple[Tensor | None, ...]:
        step = max(1, chunk // len(targets_BL))
        columns: list[tuple[Tensor, ...]] = []
        for a in range(0, targets_BL.shape[1], step):
            b = a + step
            teacher_BlV = None if teacher_BLV is None else teacher_BLV[:, a:b]
            columns.append(_chunk_terms(student_BLV[:, a:b], teacher_BlV, targets_BL[:, a:b], temperature))
        lse_s, ce_s, hit_s, *rest = (torch.cat(column, dim=1) for column in zip(*columns, strict=True))
        lse_t, ce_t, hit_t, kl = rest if rest else (None,) * 4
        ctx.save_for_backward(student_BLV, teacher_BLV, targets_BL, lse_s, lse_t)
        ctx.kl_weight, ctx.step, ctx.temperature = kl_weight, step, temperature
        ctx.mark_non_differentiable(*(t for t in (ce_s, hit_s, ce_t, hit_t, kl) if t is not None))
        ctx.set_materialize_grads(False)
        total = ce_s.sum()
        if ce_t is not None and kl is not None:
            total = total + kl_weight * kl.sum()
            total = total + ce_t.sum() if teacher_learns else total
        return total, ce_s, hit_s, ce_t, hit_t, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gain: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if gain is None:
            return (None,) * 7
        student, teacher, targets, lse_s, lse_t = ctx.saved_tensors
        grads = [
            torch.empty_like(x) if needed else None
            for x, needed in zip((student, teacher), ctx.needs_input_grad, strict=False)
        ]
        pull = teacher is not None and ctx.kl_weight != 0
        for a in range(0, targets.shape[1], ctx.step):
            part = slice(a, a + ctx.step)
            softened = ctx.temperature != 1
            p_tea = _probabilities(teacher, lse_t, part) if (pull and not softened) or grads[1] is not None else None
            if grads[0] is not None:
                d_x = _probabilities(student, lse_s, part)
                if pull and softened:
                    d_x.add_(_softened_pull(student[:, part], teacher[:, part], ctx.temperature), alpha=ctx.kl_weight)
                elif pull and p_tea is not None:
                    d_x.mul_(1 + ctx.kl_weight).sub_(p_tea, alpha=ctx.kl_weight)
                grads[0][:, part].copy_(_less_one_hot(d_x, targets[:, part]).mul_(gain))
                del d_x
            if grads[1] is not None and p_tea is not None:
                grads[1][:, part].copy_(_less_one_hot(p_tea, targets[:, part]).mul_(gain))
        return (*grads, None, None, None, None, None)


def _chunk_terms(
    student_BlV: Tensor, teacher_BlV: Tensor | None, targets_Bl: Tensor, temperature: float
) -> tuple[Tensor, ...]:
    """(lse, CE, hit) of the student; with a teacher also (lse, CE, hit) of the teacher, and KL; (B,l) each."""
    ours, log_p = _cross_entropy(student_BlV, targets_Bl)
    if teacher_BlV is None:
        return ours
    theirs, log_q = _cross_entropy(teacher_BlV, targets_Bl)
    if temperature != 1:
        log_p, log_q = (_softened(x_BlV, temperature).log_softmax(-1) for x_BlV in (student_BlV, teacher_BlV))
    kl_Bl = log_p.neg_().add_(log_q).mul_(log_q.exp_()).sum(-1)  # sum of q (log q - log p); overwrites log_p
    if temperature != 1:
        kl_Bl = kl_Bl * temperature**2
    return *ours, *theirs, kl_Bl


def _cross_entropy(x_BlV: Tensor, targets_Bl: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """((lse, CE, hit), log p), where hit is 1 where the target is the most likely code."""
    x_BlV = _wide(x_BlV)
    lse_Bl = x_BlV.logsumexp(-1)
    log_p = x_BlV - lse_Bl.unsqueeze(-1)
    ce_Bl = log_p.gather(-1, targets_Bl.unsqueeze(-1)).squeeze(-1).neg()
    return (lse_Bl, ce_Bl, (x_BlV.argmax(-1) == targets_Bl).to(x_BlV.dtype)), log_p


def _probabilities(x_BLV: Tensor, lse_BL: Tensor, part: slice) -> Tensor:
    """softmax of a chunk, in a new buffer."""
    return (_wide(x_BLV[:, part]) - lse_BL[:, part].unsqueeze(-1)).exp_()


def _softened(x_BlV: Tensor, temperature: float) -> Tensor:
    return _wide(x_BlV) / temperature


def _softened_pull(student_BlV: Tensor, teacher_BlV: Tensor, temperature: float) -> Tensor:
    """d (T^2 KL) / d x_stu = T (p_stu - p_tea), both of logits / T."""
    p, q = (_softened(x_BlV, temperature).softmax(-1) for x_BlV in (student_BlV, teacher_BlV))
    return p.sub_(q).mul_(temperature)


def _less_one_hot(p_BlV: Tensor, targets_Bl: Tensor) -> Tensor:
    """p - onehot, in place."""
    return p_BlV.scatter_add_(-1, targets_Bl.unsqueeze(-1), p_BlV.new_full((*targets_Bl.shape, 1), -1.0))


def _wide(x: Tensor) -> Tensor:
    """In fp32, or unchanged if wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalized_distance(h_BLC: Tensor, target_BLC: Tensor, eps: float) -> Tensor:
    ours, theirs = (F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=eps) for x_BLC in (h_BLC, target_BLC))
    return F.mse_loss(ours, theirs)


def _printed_distance(h_BLC: Tensor, target_BLC: Tensor, _: float) -> Tensor:
    return (h_BLC - target_BLC).square().sum() / len(h_BLC)


DISTANCES = {"normalized": _normalized_distance, "printed": _printed_distance}


# ------------------------------------------------------------------------------------------------ checks and report


def _report(parts: _TokenTerms, begin_ends: BeginEnds) -> Terms:
    terms = {}
    for name, value_BL in parts._asdict().items():
        if value_BL is not None:
            terms[name] = value_BL.mean()
            terms[f"{name}_S"] = torch.stack([value_BL[:, begin:end].mean() for begin, end in begin_ends])
    return terms


def _check_scales(tokens: int, begin_ends: BeginEnds) -> None:
    if not begin_ends or begin_ends[-1][1] != tokens:
        raise ValueError(f"the scales {list(begin_ends)} do not end at the {tokens} tokens given.")


def _check(
    student_BLV: Tensor, teacher_BLV: Tensor | None, targets_BL: Tensor, begin_ends: BeginEnds, kl_weight: float
) -> None:
    if student_BLV.ndim != 3 or student_BLV.shape[:2] != targets_BL.shape:
        raise ValueError(f"logits {tuple(student_BLV.shape)} do not fit targets {tuple(targets_BL.shape)}.")
    if teacher_BLV is not None and teacher_BLV.shape != student_BLV.shape:
        raise ValueError(f"teacher logits {tuple(teacher_BLV.shape)}, student logits {tuple(student_BLV.shape)}.")
    if kl_weight < 0:
        raise ValueError(f"kl_weight is {kl_weight}; it must not be negative.")
    _check_scales(targets_BL.shape[1], begin_ends)
