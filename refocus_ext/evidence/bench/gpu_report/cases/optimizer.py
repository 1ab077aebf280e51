"""The cases of AdamW's implementations and of the slices of eq. 13."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from patches.protocols import as_module
from patches.teacher_block import detached_logits
from refocus_ext.distill import recipe
from refocus_ext.distill.losses import distillation_loss
from refocus_ext.distill.recipe import DistillWeights
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.turns import Part

SLICES = (1024, 4096, 8192, 16384)  # tokens
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}}


def adamw(bench: Bench, depth: int) -> Comparison:
    var = bench.var(bench.vae(), depth)
    for parameter in as_module(var).parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    parts = []
    for name, how in IMPLEMENTATIONS.items():
        groups = recipe.weight_decay_groups(as_module(var).named_parameters())
        optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=recipe.BETAS, **how)
        parts.append(Part(name, optimizer.step, holds=functools.partial(moments_bytes, optimizer)))
    return Comparison(f"AdamW's step on the parameters of d{depth}", parts)


def moments_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def slices(bench: Bench, depth: int, batch: int) -> Comparison:
    """Both heads and eq. 13's logit terms, forward and backward, by tokens at a time."""
    var, device = bench.var(bench.vae(), depth), bench.device
    hidden = [torch.randn(batch, var.L, var.C, device=device, requires_grad=True) for _ in range(2)]
    cond_BD = torch.randn(batch, var.C, device=device)
    idx_BL = torch.randint(bench.geometry.codes, (batch, var.L), device=device)

    def run(chunk: int) -> Callable[[], Any]:
        def forward_and_backward() -> None:
            for tensor in (*hidden, *as_module(var).parameters()):
                tensor.grad = None
            with bench.autocast():
                loss, _ = distillation_loss(
                    hidden[0],
                    hidden[1],
                    idx_BL,
                    var.begin_ends,
                    student_head=lambda h_bLC, images: var.get_logits(h_bLC, cond_BD[images]),
                    teacher_head=lambda h_bLC, images: detached_logits(var, h_bLC, cond_BD[images]),
                    kl_weight=DistillWeights().logit,
                    chunk=chunk,
                )
            loss.backward()

        return forward_and_backward

    whole = batch * var.L
    sizes = {f"{size} tokens": size for size in SLICES if size < whole} | {f"all {whole} tokens": whole}
    parts = [Part(name, run(size), images=batch) for name, size in sizes.items()]
    note = f"`distill` takes {bench.kind.tokens_at_once} on this type of device; a slice is one image at least."
    return Comparison(f"Eq. 13 by slices of the batch, d{depth}, batch {batch}", parts, (note,))
