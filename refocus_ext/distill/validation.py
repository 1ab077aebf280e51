"""Does the teacher learn from alias tokens? Held-out cross-entropy of student and teacher, with two controls.

The teacher is shown an image's own alias tokens, those of another image, and constant ones. Only a gain with the
first that the others do not give comes from the image's aliases.

Shapes: N images, B batch, L structure tokens, T alias tokens, S token scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.distill.objective import DistillObjective, TokenEmbedding
from refocus_ext.engine.distributed import World

SHOWN = ("teacher", "other", "constant")  # a teacher's alias tokens: the image's own, another image's, constant ones

ALL = slice(None)  # images of a batch


class ValidationTokens(NamedTuple):
    """Held-out images as tokens, on the CPU."""

    structure_NL: Tensor
    alias_NT: Tensor
    label_N: Tensor


@dataclass(frozen=True)
class DistillReport:
    """Means over images; cross-entropies in nats per token, accuracies as shares of 1, per scale and over all tokens.

    `ce` and `acc` map "student" and, with a teacher, each of `SHOWN` to S values (of one without alias tokens only the first);
    `ce_mean` to the mean over all tokens.
    `gap_error` is the standard error over images of CE_student - CE_teacher over all tokens, `control_error` for each control that
    of CE_control - CE_teacher.

    `target_variance` maps each teacher to E|q - p|^2 / E|r - p|^2 (student p, teacher q, token r one-hot): what is left of the
    variance of a token as target where the teacher's distribution is the target. It is small if the teacher knows what the student
    could know, and 1 if it knows the token itself.
    """

    ce: dict[str, list[float]]
    acc: dict[str, list[float]]
    ce_mean: dict[str, float]
    gap_error: float
    images: int
    target_variance: dict[str, float] = field(default_factory=dict)
    control_error: dict[str, float] = field(default_factory=dict)

    def gap(self, shown: str = "teacher") -> float:
        """CE_student - CE_teacher over all tokens, nats per token; above 0 the teacher predicts better."""
        return self.ce_mean["student"] - self.ce_mean[shown]

    def gap_S(self, shown: str = "teacher") -> list[float]:
        """The same per scale."""
        return [student - teacher for student, teacher in zip(self.ce["student"], self.ce[shown], strict=True)]

    @property
    def has_teacher(self) -> bool:
        return "teacher" in self.ce

    @property
    def has_controls(self) -> bool:
        """Whether the teacher reads alias tokens."""
        return SHOWN[-1] in self.ce

    def verdict(self) -> str:
        """One sentence: whether the image's own alias tokens help the teacher beyond the controls, or whether one without alias
        tokens predicts better than the student."""
        if not self.has_controls:
            better = "better" if self.gap() > 2 * self.gap_error else "no better"
            gap = f"{self.gap():.3f} nats per token"
            return f"The teacher, without alias tokens, predicts {better} than the student: its gap is {gap}."
        beyond = {name: self.gap() - self.gap(name) for name in SHOWN[1:]}
        clear = all(beyond[name] > 2 * self.control_error[name] for name in beyond)
        if self.gap() > 2 * self.gap_error and clear:
            least = min(beyond.values())
            return f"The image's own alias tokens gain the teacher {least:.3f} nats per token beyond both controls."
        return (
            "The image's own alias tokens give the teacher no measurable gain: its gap is not two standard errors above 0 and "
            "above both controls. Train for more steps, on more images than the model can memorize."
        )

    def flat(self) -> dict[str, float]:
        """Scalars for the log; scales are numbered from 1."""
        rows = {f"ce_{name}": value for name, value in self.ce_mean.items()}
        for name, values in (*self.ce.items(), *((f"acc_{name}", shares) for name, shares in self.acc.items())):
            prefix = name if name.startswith("acc_") else f"ce_{name}"
            rows |= {f"{prefix}_scale{s}": value for s, value in enumerate(values, start=1)}
        if self.has_teacher:
            shown = [name for name in SHOWN if name in self.ce]
            rows |= {f"gap_{name}": self.gap(name) for name in shown} | {"gap_error": self.gap_error}
            rows |= {f"target_variance_{name}": self.target_variance[name] for name in shown}
        return rows

    def lines(self, patch_nums: Sequence[int]) -> list[str]:
        """The table that a run prints at its end."""
        if not self.has_teacher:
            rows = [
                f"{pn:>3}x{pn:<3} {ce:>8.3f} {100 * acc:>7.1f}%"
                for pn, ce, acc in zip(patch_nums, self.ce["student"], self.acc["student"], strict=True)
            ]
            return ["scale   student accuracy", *rows]
        if not self.has_controls:
            return self._lines_without_controls(patch_nums)
        head = [
            "                            |  gap (nats per token) with alias tokens",
            "scale  CE student   teacher |  of the image  of another  constant",
        ]
        columns = [self.gap_S(name) for name in SHOWN]
        rows = []
        for s, pn in enumerate(patch_nums):
            own, other, constant = (column[s] for column in columns)
            scale, student, teacher = f"{pn}x{pn}", self.ce["student"][s], self.ce["teacher"][s]
            rows.append(f"{scale:<6} {student:>10.3f} {teacher:>9.3f} | {own:>13.4f} {other:>11.4f} {constant:>9.4f}")
        total = (
            f"all    {self.ce_mean['student']:>10.3f} {self.ce_mean['teacher']:>9.3f} | {self.gap():>13.4f} "
            f"{self.gap('other'):>11.4f} {self.gap('constant'):>9.4f}"
        )
        total += f"\nThe standard error of the first gap is {self.gap_error:.4f}."
        return [*head, *rows, total, self._variance_line()]

    def _variance_line(self) -> str:
        left = [f"{100 * value:.1f}%" for value in self.target_variance.values()]
        shown = (
            f"\n({left[1]} with another image's alias tokens, {left[2]} with constant ones)" if len(left) > 1 else ""
        )
        return f"As targets, the teacher's outputs have {left[0]} of the variance of the tokens themselves{shown}."

    def _lines_without_controls(self, patch_nums: Sequence[int]) -> list[str]:
        rows = [
            f"{pn:>3}x{pn:<3} {self.ce['student'][s]:>11.3f} {self.ce['teacher'][s]:>11.3f} {gap:>10.4f}"
            for s, (pn, gap) in enumerate(zip(patch_nums, self.gap_S(), strict=True))
        ]
        total = f"all     {self.ce_mean['student']:>10.3f} {self.ce_mean['teacher']:>11.3f} {self.gap():>10.4f}"
        return [
            "scale   CE student  CE teacher        gap  (nats per token)",
            *rows,
            f"{total}  (standard error {self.gap_error:.4f})",
            self._variance_line(),
        ]


@torch.no_grad()
def validate(
    objective: DistillObjective,
    tokens: ValidationTokens,
    embed: TokenEmbedding,
    world: World,
    batch: int,
    constant: int | None = None,
) -> DistillReport:
    """Measures both networks in eval mode and without label drop (both restored afterwards); each process takes its share of
    the images.

    Args:
        batch: images per batch on each process.
        constant: see `constant_and_other`.
    """
    teacher = objective.teacher
    shown = constant_and_other(tokens.alias_NT, constant) if teacher is not None and teacher.reads_aliases else ()
    N = len(tokens.structure_NL)
    sums: Tensor | None = None
    with evaluating(objective):
        for picks, weight_B in shares(N, world, batch):
            device = world.device
            idx_BL, label_B = tokens.structure_NL[picks].to(device), tokens.label_N[picks].to(device)
            alias_XK = [embed.alias(alias_NT[picks].to(device)) for alias_NT in shown]
            if teacher is not None and not shown:
                alias_XK = [[]]
            nll_XBL, hit_XBL, variance_XBL = _score(objective, label_B, embed.structure(idx_BL), idx_BL, alias_XK)
            part = _sums(nll_XBL, hit_XBL, variance_XBL, weight_B.to(device), objective.var.begin_ends)
            sums = part if sums is None else sums + part
    assert sums is not None
    return _report(world.sum(sums).cpu(), objective)


def shares(count: int, world: World, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of image numbers and their weights (0 for padding); every process gets the same number of batches."""
    mine = torch.arange(world.rank, count, world.size)
    per_process = -(-count // world.size)
    for begin in range(0, per_process, batch):
        size = min(batch, per_process - begin)
        picks = mine[begin : begin + size]
        weight_B = torch.zeros(size)
        weight_B[: len(picks)] = 1
        yield torch.cat((picks, picks.new_zeros(size - len(picks)))), weight_B


def constant_and_other(alias_NT: Tensor, constant: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The image's own alias tokens, those of an image half the set away, and one token everywhere.

    Args:
        constant: that token, for a teacher that has been trained with it; None is the most frequent one.
    """
    other_NT = alias_NT.roll(max(1, len(alias_NT) // 2), dims=0)
    if constant is not None:
        one = alias_NT.new_full((), constant)
    else:
        one = alias_NT.flatten().mode().values if alias_NT.numel() else alias_NT.new_zeros(())
    return alias_NT, other_NT, one.expand_as(alias_NT)


@contextmanager
def evaluating(objective: DistillObjective) -> Iterator[None]:
    """Eval mode, and no label drop: VAR drops labels in eval mode too."""
    training, drop = objective.training, objective.var.cond_drop_rate
    own = objective.teacher.own_var if objective.teacher else None
    networks = [objective.var] if own is None else [objective.var, own]
    objective.eval()
    for var in networks:
        var.cond_drop_rate = 0.0
    try:
        yield
    finally:
        for var in networks:
            var.cond_drop_rate = drop
        objective.train(training)


def _score(
    objective: DistillObjective, label_B: Tensor, x_BLC: Tensor, idx_BL: Tensor, alias_XK: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token, (X,B,L), X: the student, then the teacher with each kind of alias tokens: negative log-likelihood, hits, and
    |q - p|^2, for the student |r - p|^2."""
    tape, taught = objective.passes(label_B, x_BLC, alias_XK[0] if alias_XK else [])
    assert tape.hidden_BLC is not None
    logits_BLV = objective.student_head(tape)(tape.hidden_BLC, ALL)
    p_BLV = logits_BLV.float().softmax(-1)
    p_of_token_BL = p_BLV.gather(-1, idx_BL[..., None])[..., 0]
    results = [(*_tokens(logits_BLV, idx_BL), 1 - 2 * p_of_token_BL + p_BLV.square().sum(-1))]
    for number, alias_K in enumerate(alias_XK):
        if number:
            assert objective.teacher is not None
            taught = objective.teacher.taught_again(objective.var, tape, label_B, x_BLC, alias_K)
        assert taught is not None
        logits_BLV = taught.head(taught.features[-1], ALL)
        variance_BL = (logits_BLV.float().softmax(-1) - p_BLV).square().sum(-1)
        results.append((*_tokens(logits_BLV, idx_BL), variance_BL))
    nll, hit, variance = zip(*results, strict=True)
    return torch.stack(nll), torch.stack(hit), torch.stack(variance)


def _tokens(logits_BLV: Tensor, idx_BL: Tensor) -> tuple[Tensor, Tensor]:
    nll_BL = F.cross_entropy(logits_BLV.flatten(0, 1), idx_BL.flatten(), reduction="none").view_as(idx_BL)
    return nll_BL, (logits_BLV.argmax(-1) == idx_BL).to(nll_BL.dtype)


def _sums(
    nll_XBL: Tensor,
    hit_XBL: Tensor,
    variance_XBL: Tensor,
    weight_B: Tensor,
    begin_ends: Sequence[tuple[int, int]],
) -> Tensor:
    """(X, 2 S + 7), float64: per scale sums over images of mean NLL and of hits, then of mean NLL, of the targets' variance, of the
    student's NLL beyond it, its square, of it beyond the teacher's, its square, and 1.

    Without a matrix product, which autocast would take in bf16.
    """
    nll_XBL, hit_XBL, weight_B = nll_XBL.double(), hit_XBL.double(), weight_B.double()

    def total(value_XB: Tensor) -> Tensor:
        return (value_XB * weight_B).sum(1)

    columns = [total(nll_XBL[:, :, a:b].mean(2)) for a, b in begin_ends]
    columns += [total(hit_XBL[:, :, a:b].mean(2)) for a, b in begin_ends]
    nll_XB = nll_XBL.mean(2)
    columns += [total(nll_XB), total(variance_XBL.double().mean(2))]
    for difference_XB in (nll_XB[:1] - nll_XB, nll_XB - nll_XB[1:2] if len(nll_XB) > 1 else torch.zeros_like(nll_XB)):
        columns += [total(difference_XB), total(difference_XB.square())]
    columns.append(weight_B.sum().expand(len(nll_XB)))
    return torch.stack(columns, dim=1)


def _report(sums: Tensor, objective: DistillObjective) -> DistillReport:
    names = ("student", *SHOWN)[: len(sums)]
    scales = len(objective.var.begin_ends)
    count = float(sums[0, -1])
    means = sums[:, :-1] / count
    gap_error, beyond_error = (_standard_errors(pair, count) for pair in means[:, -4:].split(2, dim=1))
    return DistillReport(
        ce={name: row[:scales].tolist() for name, row in zip(names, means, strict=True)},
        acc={name: row[scales : 2 * scales].tolist() for name, row in zip(names, means, strict=True)},
        ce_mean={name: float(row[2 * scales]) for name, row in zip(names, means, strict=True)},
        gap_error=gap_error[1] if len(names) > 1 else 0.0,
        control_error=dict(zip(names[2:], beyond_error[2:], strict=True)),
        images=int(count),
        target_variance={
            name: float(row[2 * scales + 1] / means[0, 2 * scales + 1])
            for name, row in zip(names[1:], means[1:], strict=True)
        },
    )


def _standard_errors(means_X2: Tensor, count: float) -> list[float]:
    """Of means over `count` images, from the mean and the mean square; 0 for a single image."""
    mean_X, square_X = means_X2.unbind(1)
    return ((square_X - mean_X.square()).clamp_min(0) / max(count - 1, 1)).sqrt().tolist()
