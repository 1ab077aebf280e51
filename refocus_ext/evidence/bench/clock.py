"""Timing for `bash run.sh bench`: parts take turns in one process, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from refocus_ext.engine.devices import kind_of


def now(device: torch.device) -> float:
    """Seconds, with the device's work done."""
    kind_of(device).synchronize(device)
    return time.perf_counter()


def time_interleaved(parts: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each part, without gradients; one untimed round comes first."""
    runs: dict[str, list[float]] = {name: [] for name in parts}
    with torch.no_grad():
        for round_number in range(repeats + 1):
            for name, part in parts.items():
                began = now(device)
                part()
                if round_number:
                    runs[name].append(now(device) - began)
    return {name: statistics.median(values) for name, values in runs.items()}
