"""The cost that the teacher adds to a VAR training step and to the parameters, counted without allocating weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from patches import Patch
from patches.model_parts import blocks_of
from patches.upstream import Upstream
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherOverhead, TeacherSettings
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.distill.teacher.still import StillTeacher

_SMALL = (torch.arange, torch.linspace, torch.tensor)  # operations from which constructors compute sizes and drop rates


class _Constructible(TorchFunctionMode):
    """Keeps small constants, and values computed from them only, real under fake tensors, because constructors read them.

    Fake values are read by `trunc_normal_`, which redraws while a value is out of bounds, and by the check of a patch that the
    mask is the one it expects.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if fake and func in (Tensor.__bool__, Tensor.item):
            return False
        if fake and func is torch.equal:
            return True
        if func in _SMALL or (tensors and not fake):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def teacher_overhead(
    upstream: Upstream,
    depth: int,
    geometry: TeacherGeometry | None = None,
    vocab_size: int = 8192,
    kind: type[AliasTeacher] = Teacher,
    settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    **options: Any,
) -> TeacherOverhead:
    """Counts VAR-d`depth` (width 64 x depth) with and without a teacher; no weights are allocated, nothing is computed.

    Args:
        geometry: of the teacher; default: 256 px, M = 2 and alias stride 8.
        vocab_size: V.
        kind, settings: of the teacher; its own passes are counted too, if they are to be.
        options: further arguments of `Upstream.build_var`, such as num_classes and shared_aln.
    """
    geometry = geometry or TeacherGeometry(width=64 * depth)
    var, teacher = outlines(upstream, depth, geometry, vocab_size, **options)
    with var.word_embed.weight.fake_mode:
        label_B = torch.zeros(1, dtype=torch.long)
        x_BLC = torch.zeros(1, var.L - var.first_l, var.Cvae)
        alias_K = [torch.zeros(1, tokens, geometry.code_dim) for tokens in geometry.tokens]
        plain = _flops(lambda: [var(label_B, x_BLC)])
        both = _flops(lambda: list(teacher(var, label_B, x_BLC, alias_K)[:2]))
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())  # noqa: E731
    blocks = sum(count(block) for block in blocks_of(var)[-geometry.blocks :])
    counts = TeacherOverhead(count(var), count(teacher) if settings.aliases else 0, plain, both, blocks)
    if not kind.counted:
        return counts
    own, member = outlines(upstream, depth, geometry, vocab_size, kind=kind, settings=settings, **options)
    with own.word_embed.weight.fake_mode:
        label_B = torch.zeros(1, dtype=torch.long)
        x_BLC = torch.zeros(1, own.L - own.first_l, own.Cvae)
        alias_K = [torch.zeros(1, tokens, geometry.code_dim) for tokens in geometry.tokens]
        return counts._replace(kind_flops=_flops(lambda: _heads(member, own, label_B, x_BLC, alias_K)))


def _heads(teacher: AliasTeacher, var: Any, label_B: Tensor, x_BLC: Tensor, alias_K: list[Tensor]) -> list[Tensor]:
    """The logits of student and teacher."""
    tape, taught = teacher.passes(var, label_B, x_BLC, alias_K)
    assert tape.hidden_BLC is not None and tape.cond_BD is not None
    theirs = taught.head(taught.features[-1], slice(None))
    return [var.get_logits(tape.hidden_BLC, tape.cond_BD), theirs]


def outlines(
    upstream: Upstream,
    depth: int,
    geometry: TeacherGeometry,
    vocab_size: int,
    *patches: Patch,
    kind: type[AliasTeacher] = Teacher,
    settings: TeacherSettings = TeacherSettings(),  # noqa: B008 - frozen
    **options: Any,
) -> tuple[Any, AliasTeacher]:
    """A VAR with `patches` applied and a teacher, both of fake tensors on the CPU: no weights are allocated.

    Args:
        kind, settings: of the teacher.
        options: further arguments of `Upstream.build_var`.
    """
    vae = upstream.build_vae(vocab_size=vocab_size, ch=32, patch_nums=geometry.patch_nums)

    def build() -> Any:
        var = upstream.build_var(vae, depth=depth, **options)
        for patch in patches:
            patch.apply(var)
        return var

    with FakeTensorMode(allow_non_fake_inputs=True), _Constructible():
        var, teacher = build(), kind.build(geometry, build, 0, replace(settings, weights=None))
    if isinstance(teacher, StillTeacher):
        teacher.keeps_random_numbers = False
    return var, teacher


def _flops(forward: Any) -> int:
    """FLOPs of forward and of the backward passes of the outputs; attention by matrix products, which are counted exactly."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        outputs: list[Tensor] = forward()
        torch.stack([output.sum() for output in outputs]).sum().backward()
    return counter.get_total_flops()
