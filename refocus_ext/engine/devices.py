"""The device, and the precision it computes in."""

from __future__ import annotations

import torch

from refocus_ext.errors import UsageError


def pick_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one.

    Raises:
        UsageError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name} is not available here; use cpu, or leave it out.") from None
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """fp32, bf16 or fp16; 'auto' is bf16 on CUDA and fp32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
