"""What the report's header says about the machine, and the peak of its card."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import subprocess
from typing import Any

import torch

from patches import Upstream
from refocus_ext import invocation
from refocus_ext.evidence.bench.gpu_report.cases.loading import cores

# FLOP/s of dense bf16 products with fp32 sums, from NVIDIA's data sheets; the first name that a card's name contains counts.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A30", 165e12),
    ("A40", 150e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def card_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_of(name: str) -> float | None:
    """FLOP/s; None for a card that is not in the table.

    >>> peak_of("NVIDIA H100 80GB HBM3"), peak_of("NVIDIA L40"), peak_of("NVIDIA L4")
    (989000000000000.0, None, 121000000000000.0)
    """
    words = f"{name} "
    found = (peak for known, peak in PEAKS if f"{known} " in words or f"{known}-" in words)
    return next(found, None)


def header(upstream: Upstream, device: torch.device) -> dict[str, Any]:
    """Facts by name, in the order in which they are shown."""
    facts: dict[str, Any] = {"card": card_name(device)}
    if device.type == "cuda":
        facts |= {
            "memory": f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB",
            "driver": driver(),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return facts | {
        "torch": torch.__version__,
        "cores": cores(),
        "upstream": upstream.describe().removeprefix("upstream: "),
        "flash-attn": "installed" if _installed("flash-attn") else "not installed",
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "command": invocation.again(),
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def driver() -> str:
    """Version of NVIDIA's driver, or "not known"."""
    if shutil.which("nvidia-smi") is None:
        return "not known"
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "not known"
    return told[0] if told else "not known"
