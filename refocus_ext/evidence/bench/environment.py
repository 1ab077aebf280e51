"""What the memory allocator, huge pages and the threads' way of waiting give on a CPU: the demo's training steps, in processes of
their own that differ only in environment variables; also another layout of the images, and bf16."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refocus_ext.errors import RunFailed
from refocus_ext.evidence.bench.startup import ROOT

KEEP = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"}  # glibc keeps freed memory
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # glibc asks for transparent huge pages
PASSIVE, ACTIVE = ({"OMP_WAIT_POLICY": policy} for policy in ("PASSIVE", "ACTIVE"))
VARIANTS: dict[str, dict[str, str]] = {
    "as the system has it": {},
    "waiting threads sleep": PASSIVE,
    "waiting threads spin": ACTIVE,
    "freed memory is kept": KEEP,
    "huge pages": HUGE,
    "kept, huge pages": KEEP | HUGE,
    "huge pages, channels_last": HUGE,
    "huge pages, bf16": HUGE,
}
BUSY = "as the system has it", "waiting threads spin", "waiting threads sleep"  # measured beside a busy core too
STEPS, WARM = 40, 10


def measure(repeats: int) -> dict[str, Any]:
    """Median steps per second of the demo's stage 1 (steps WARM + 1 to STEPS) under each variant, and beside a program that
    holds a core; the variants take turns."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    busy: dict[str, list[float]] = {name: [] for name in BUSY}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for name in rates:
                rates[name].append(_rate(Path(folder) / f"{number} {name}", name))
            with _a_core_held():
                for name in busy:
                    busy[name].append(_rate(Path(folder) / f"{number} busy {name}", name))
    shown = {"alone": rates, "beside a busy core": busy}
    return {kind: {name: statistics.median(values) for name, values in of.items()} for kind, of in shown.items()}


def _rate(out: Path, name: str) -> float:
    """Steps per second, from the times at which two checkpoints' steps were printed."""
    words = [
        "tokenizer",
        "--steps",
        str(STEPS),
        "--warm-autoencoder",
        "5",
        "--out",
        str(out),
        "--save-every",
        str(STEPS),
    ]
    layout = "on" if "channels_last" in name else "off"
    precision = "bf16" if "bf16" in name else "fp32"
    words += ["--picture-every", str(STEPS), "--channels-last", layout, "--precision", precision, "--device", "cpu"]
    clean = {key: value for key, value in os.environ.items() if key not in PASSIVE | KEEP | HUGE}
    environment = clean | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | VARIANTS[name]
    code = TIMED.format(warm=WARM, steps=STEPS)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    found = re.search(r"^seconds (\S+)$", done.stdout, flags=re.M)
    if not found:
        raise RunFailed(f"the demo failed under {VARIANTS[name] or 'no variables'}: {done.stderr[-300:]}")
    return (STEPS - WARM) / float(found[1])


# Runs the command line with a clock around its steps.
TIMED = """
import sys, time
from refocus_ext.tokenizer.training import TokenizerTraining
from refocus_ext.commands import main
real, times = TokenizerTraining.train_step, []
def step(self, number, batches):
    result = real(self, number, batches)
    times.append(time.perf_counter())
    return result
TokenizerTraining.train_step = step
code = main(sys.argv[1:])
print("seconds", times[{steps} - 1] - times[{warm} - 1])
sys.exit(code)
"""


@contextlib.contextmanager
def _a_core_held() -> Iterator[None]:
    """Another process computes meanwhile."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _spin() -> None:
    while True:
        pass


def table(report: dict[str, Any]) -> list[str]:
    """The report in lines."""
    lines = []
    for kind, rates in report.items():
        base = next(iter(report["alone"].values())) if kind == "alone" else rates[BUSY[-1]]
        lines.append(f"{kind:<36} steps/s   against {'the system' if kind == 'alone' else BUSY[-1]}")
        lines += [f"  {name:<34} {rate:>7.2f} {rate / base:>10.2f}x" for name, rate in rates.items()]
    return lines
