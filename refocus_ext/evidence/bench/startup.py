"""How long commands take to start, in processes of their own, as ratios to the import of torch."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from refocus_ext.evidence.bench.clock import time_interleaved

ROOT = Path(__file__).resolve().parents[3]
TORCH = "import torch"
STARTS = {
    TORCH: ("-c", TORCH),
    "help": ("-m", "refocus_ext", "help"),
    "tokenizer --help": ("-m", "refocus_ext", "tokenizer", "--help"),
    "tokenizer --dry-run": ("-m", "refocus_ext", "tokenizer", "--dry-run", "--device", "cpu"),
}


def measure(repeats: int) -> dict[str, Any]:
    """Median seconds of each start, and its ratio to `import torch` of the same run."""
    parts: dict[str, Callable[[], Any]] = {name: functools.partial(_start, words) for name, words in STARTS.items()}
    seconds = time_interleaved(parts, repeats, torch.device("cpu"))
    return {"seconds": seconds, "time": {name: value / seconds[TORCH] for name, value in seconds.items()}}


def _start(words: tuple[str, ...]) -> None:
    """Runs Python on these words.

    Raises:
        CalledProcessError: it failed.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)


def table(report: dict[str, Any]) -> list[str]:
    """The report in lines."""
    seconds, ratio = report["seconds"], report["time"]
    lines = [f"{name:<21}{ratio[name]:5.2f} times `{TORCH}` ({seconds[name]:.2f} s)" for name in seconds]
    beyond = seconds["tokenizer --dry-run"] - seconds[TORCH]
    return [*lines, f"a dry run takes {beyond:.1f} s more than `{TORCH}`"]
