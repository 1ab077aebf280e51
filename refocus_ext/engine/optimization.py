"""Learning-rate schedule and norms of gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def warmup_cosine(step: int, steps: int, warmup: int, end: float) -> float:
    """Factor of the peak rate at `step` (0-based): linear over `warmup` steps, then a half cosine down to `end`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def gradient_norm(module: nn.Module, clip: float) -> float:
    """Norm of all gradients, which are clipped to `clip` if that is positive."""
    limit = clip if clip > 0 else math.inf
    norm: Any = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], limit)
    return float(
        norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    )  # sharded gradients: the norm over all processes


def finite(*tensors: Tensor | float) -> bool:
    """Whether every value is finite."""
    return all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in tensors)
