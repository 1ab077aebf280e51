"""AdaLNSelfAttn and VAR -> the same, recording the inputs of a second pass through the last M blocks.

The student's pass is VAR's own forward: the patches only record, in a `StudentPass`, the inputs of the teacher's pass. The
two halves of a block and the head are then run again by the functions in this file, with detached weights.

Shapes: B batch, L tokens, C width, V codes. `six` are the AdaLN vectors gamma1, gamma2, scale1, scale2, shift1, shift2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from patches.instance import InstancePatch, Patch, PatchError, swap_class

Six = tuple[Tensor, ...]


class SharedDropPath:
    """Stochastic depth drawn once: the first call draws as `drop_path` itself would, later calls repeat its mask.

    It consumes the random numbers of one stock call, and its result is bit-identical to stock.
    """

    def __init__(self, drop_path: nn.Module) -> None:
        self.drop_path = drop_path
        self.drawn = False
        self.factor_B11: Tensor | None = None  # 0 or 1/keep per sample; None: nothing is dropped

    def __call__(self, branch_BLC: Tensor) -> Tensor:
        if not self.drawn:
            ones = branch_BLC.new_ones(branch_BLC.shape[:1] + (1,) * (branch_BLC.ndim - 1))
            factor = self.drop_path(ones)
            self.factor_B11 = None if factor is ones else factor
            self.drawn = True
        return branch_BLC if self.factor_B11 is None else branch_BLC * self.factor_B11


@dataclass
class BlockRecord:
    """One doubled block of the student's pass."""

    six: Six  # detached
    drop_attn: SharedDropPath
    drop_ffn: SharedDropPath
    mid_BLC: Tensor  # after the self-attention residual, detached
    out_BLC: Tensor  # the block's output, with the student's gradient
    in_BLC: Tensor  # the block's input, detached
    cond: Tensor  # its condition, from which `modulation` makes the six, detached


@dataclass
class StudentPass:
    """One teacher-forced forward pass of the student, with the parts shared by the teacher's pass."""

    defer_head: bool = False  # the pass ends before the head and returns `hidden_BLC` instead of logits
    logits_BLV: Tensor | None = None
    hidden_BLC: Tensor | None = None  # input of the head
    cond_BD: Tensor | None = None  # condition of the head, label drop applied
    attn_bias: Tensor | None = None
    blocks: list[BlockRecord] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ halves of a block


def modulation(block: Any, cond: Tensor) -> Six:
    """The six AdaLN vectors of a block, each (B,1,C)."""
    if block.shared_aln:
        return (block.ada_gss + cond).unbind(2)
    return block.ada_lin(cond).view(-1, 1, 6, block.C).unbind(2)


def attention_half(block: Any, x_BLC: Tensor, six: Six, attn_bias: Tensor | None, drop: SharedDropPath) -> Tensor:
    """x + drop(gamma1 SA(norm(x) (1 + scale1) + shift1)), in upstream's order of operations."""
    gamma1, _, scale1, _, shift1, _ = six
    branch = block.attn(block.ln_wo_grad(x_BLC).mul(scale1.add(1)).add_(shift1), attn_bias=attn_bias)
    # In place, as in upstream: under autocast this keeps the branch's dtype although the gates are fp32.
    return x_BLC + drop(branch.mul_(gamma1))


def ffn_half(block: Any, x_BLC: Tensor, six: Six, drop: SharedDropPath) -> Tensor:
    """x + drop(gamma2 FFN(norm(x) (1 + scale2) + shift2)), in upstream's order of operations."""
    _, gamma2, _, scale2, _, shift2 = six
    branch = block.ffn(block.ln_wo_grad(x_BLC).mul(scale2.add(1)).add_(shift2))
    return x_BLC + drop(branch.mul(gamma2))


# ------------------------------------------------------------------------------------------------ patches


class RecordedBlock(InstancePatch):
    """Modifications:
    - while a StudentPass is attached, the block runs in two halves and records the value between them
    - without one it is stock; results, gradients and random numbers are stock's in both cases
    """

    host = "AdaLNSelfAttn"
    fingerprints = {"forward": "a9dc8f618b4f"}  # noqa: RUF012

    teacher_tape: StudentPass | None
    # of the stock class
    drop_path: nn.Module

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        """Stock contract: (B,L,C) -> (B,L,C)."""
        tape = self.teacher_tape
        if tape is None:
            return super().forward(x, cond_BD, attn_bias)  # type: ignore[misc]
        six = modulation(self, cond_BD)
        drop_attn, drop_ffn = SharedDropPath(self.drop_path), SharedDropPath(self.drop_path)
        mid_BLC = attention_half(self, x, six, attn_bias, drop_attn)
        out_BLC = ffn_half(self, mid_BLC, six, drop_ffn)
        tape.attn_bias = attn_bias
        detached = tuple(vector.detach() for vector in six)
        record = BlockRecord(detached, drop_attn, drop_ffn, mid_BLC.detach(), out_BLC, x.detach(), cond_BD.detach())
        tape.blocks.append(record)
        return out_BLC


class RecordedVAR(InstancePatch):
    """Modifications:
    - while a StudentPass is attached, `get_logits` records its input; if the head is deferred it returns
      the input unchanged, and the owner of the StudentPass calls the stock `get_logits` later, in chunks
    `forward` is stock; its fingerprint is that of the pass the recording relies on.
    """

    host = "VAR"
    fingerprints = {"forward": "4891a6fad720", "get_logits": "0563e17a6f1c"}  # noqa: RUF012

    teacher_tape: StudentPass | None

    def get_logits(self, h_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        """Stock contract: logits (B,L,V), fp32; `h_BLC` (B,L,C) if the head is deferred."""
        tape = self.teacher_tape
        if tape is not None:
            tape.hidden_BLC, tape.cond_BD = h_BLC, cond_BD
            if tape.defer_head:
                return h_BLC
        return super().get_logits(h_BLC, cond_BD)  # type: ignore[misc]


class Recording(Patch):
    """`with patched(var, Recording(2, tape)): var(label_B, x)` fills `tape` with the last 2 blocks' records.

    With no tape the patched VAR is stock; apply it once per run to avoid the drift check at every step.
    """

    def __init__(self, blocks: int, tape: StudentPass | None = None) -> None:
        self.blocks, self.tape = blocks, tape

    def hosts(self, model: Any) -> Sequence[nn.Module]:
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise PatchError(
                f"Recording patches a VAR; a {type(model).__name__} has no list of `blocks` (unwrap it first)."
            )
        return [model, *last_blocks(model, self.blocks)]

    def apply(self, model: Any) -> None:
        var, *blocks = self.hosts(model)
        swap_class(var, RecordedVAR, teacher_tape=self.tape)
        for block in blocks:
            swap_class(block, RecordedBlock, teacher_tape=self.tape)


def last_blocks(var: Any, count: int) -> list[Any]:
    """The last `count` blocks of a VAR, none for 0.

    Raises:
        ValueError: the VAR has fewer.
    """
    if not 0 <= count <= len(var.blocks):
        raise ValueError(f"{count} teacher blocks of a VAR with {len(var.blocks)} blocks; use 1 to {len(var.blocks)}.")
    return list(var.blocks)[len(var.blocks) - count :]


class CrossedBlock(InstancePatch):
    """Modifications:
    - between self-attention and FFN the tokens pass through `alias_cross`, if one is attached
    - without one the block is stock
    """

    host = "AdaLNSelfAttn"
    fingerprints = RecordedBlock.fingerprints

    alias_cross: Callable[[Tensor], Tensor] | None
    crossed_features: list[Tensor]
    # of the stock class
    drop_path: nn.Module

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        """Stock contract: (B,L,C) -> (B,L,C)."""
        if self.alias_cross is None:
            return super().forward(x, cond_BD, attn_bias)  # type: ignore[misc]
        six = modulation(self, cond_BD)
        x = attention_half(self, x, six, attn_bias, SharedDropPath(self.drop_path))
        x = ffn_half(self, self.alias_cross(x), six, SharedDropPath(self.drop_path))
        self.crossed_features.append(x)
        return x


class Crossing(Patch):
    """AG-XAttn inside the last blocks of a separate teacher's VAR: one callable (B,L,C) -> (B,L,C) per block.

    `features` collects the outputs of these blocks.
    """

    def __init__(self, crosses: Sequence[Callable[[Tensor], Tensor]], features: list[Tensor]) -> None:
        self.crosses, self.features = list(crosses), features

    def hosts(self, model: Any) -> Sequence[nn.Module]:
        return last_blocks(model, len(self.crosses))

    def apply(self, model: Any) -> None:
        for block, cross in zip(self.hosts(model), self.crosses, strict=True):
            swap_class(block, CrossedBlock, alias_cross=cross, crossed_features=self.features)


# ------------------------------------------------------------------------------------------------ detached weights


class _Call(nn.Module):
    """`function(module, ...)` as a module, for `torch.func.functional_call`."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args: Any) -> Tensor:
        return self.function(self.module, *args)


def detached_call(function: Callable[..., Tensor], module: nn.Module, *args: Any) -> Tensor:
    """`function(module, *args)` with every weight of `module` detached: gradients pass through, but the weights get none."""
    weights = {f"module.{name}": weight.detach() for name, weight in module.named_parameters()}
    return torch.func.functional_call(_Call(module, function), weights, args)


def _logits(head: Any, h_BLC: Tensor, cond_BD: Tensor) -> Tensor:
    return head.head(head.head_nm(h_BLC.float(), cond_BD).float()).float()


def detached_logits(var: Any, h_BLC: Tensor, cond_BD: Tensor) -> Tensor:
    """VAR.get_logits, (B,L,V) fp32, on detached weights of the head alone."""
    head = nn.ModuleDict({"head_nm": var.head_nm, "head": var.head})
    return detached_call(_logits, head, h_BLC, cond_BD)
