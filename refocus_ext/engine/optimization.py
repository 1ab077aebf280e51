"""Learning-rate schedule, parameter groups, norms of gradients, and steps that are skipped where a value is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed


def warmup_cosine(step: int, steps: int, warmup: int, end: float) -> float:
    """Factor of the peak rate at `step` (0-based): linear over `warmup` steps, then a half cosine down to `end`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def gradient_norm(module: nn.Module, clip: float) -> Tensor:
    """Norm () of all gradients, which are clipped to `clip` if that is positive."""
    limit = clip if clip > 0 else math.inf
    norm: Any = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], limit)
    # sharded gradients: the norm over all processes
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def not_finite(*scalars: Tensor) -> Tensor:
    """Whether one of the scalars is not finite: a bool tensor (), without waiting for the device."""
    return ~torch.stack([scalar.detach().float() for scalar in scalars]).isfinite().all()


def decay_groups(module: nn.Module, weight_decay: float, **shared: Any) -> list[dict[str, Any]]:
    """AdamW parameter groups of what a module trains: [decayed, not decayed], each with the `shared` entries.

    Vectors (biases, gains of norms) and tables of embeddings (codebooks) are not decayed. Without decay all are one group.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": trained, **shared}]
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    kept = [p.ndim < 2 or id(p) in tables for p in trained]
    decayed = [p for p, keep in zip(trained, kept, strict=True) if not keep]
    others = [p for p, keep in zip(trained, kept, strict=True) if keep]
    groups = ({"params": decayed, **shared}, {"params": others, **shared, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], undivided: Sequence[dict[str, Any]]
) -> None:
    """`optimizer.load_state_dict(state)`.

    Args:
        undivided: the groups of earlier versions, which decayed all parameters; a run of theirs goes on with them.

    Raises:
        RunFailed: the state has other parameter groups.
    """
    theirs = _sizes(state["param_groups"])
    if theirs == _sizes(undivided) != _sizes(optimizer.param_groups):
        optimizer.param_groups.clear()
        for group in undivided:
            optimizer.add_param_group(group)
    try:
        optimizer.load_state_dict(state)
    except ValueError:
        ours = _sizes(optimizer.param_groups)
        raise RunFailed(
            f"the checkpoint's optimizer has groups of {theirs} parameters where this version has {ours}; finish the run with "
            "the version that began it, or begin a new one (--resume never)."
        ) from None


def _sizes(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


class GuardedStep:
    """Steps of several optimizers that all happen or none: where a gradient or loss is not finite on any process, no process
    changes its weights.

    Whether it happens is decided on the device: fused optimizers read a flag there, so that the host waits for nothing.

    Args:
        scaler: the loss scaler; with it a gradient that overflows is expected and only lowers the scale.
    """

    def __init__(self, world: World, scaler: torch.amp.GradScaler, *optimizers: torch.optim.Optimizer) -> None:
        self.world, self.scaler, self.optimizers = world, scaler, optimizers

    def step(self, losses: Sequence[Tensor], norms: Sequence[Tensor], skip: Tensor | None = None) -> Guarded:
        """
        Args:
            losses, norms: scalars of this process; the gradients have been unscaled by `scaler.unscale_`.
            skip: a further reason to skip, a bool tensor ().
        """
        bad, overflow = not_finite(*losses), not_finite(*norms)
        skipped = bad | overflow if skip is None else bad | overflow | skip
        bad, skipped = self.world.any_of(torch.stack((bad if self.scaler.is_enabled() else skipped, skipped))).unbind()
        for optimizer in self.optimizers:
            step_unless(skipped, optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()
        return Guarded(bad, skipped)


class Guarded(NamedTuple):
    """Bool tensors (), the same on every process: whether the step was bad, and whether it was skipped. A step that is skipped
    because fp16 overflowed is not bad."""

    bad: Tensor
    skipped: Tensor


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` unless the bool tensor () is set."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if not fused:  # a CPU's: reading the flag waits for nothing
        if not skipped:
            optimizer.step()
        return
    flagged: Any = optimizer  # as torch.amp.GradScaler hands its flag to fused optimizers
    flagged.found_inf = skipped.float()
    try:
        optimizer.step()
    finally:
        del flagged.found_inf
