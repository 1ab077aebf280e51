"""What every training loop here needs: learning-rate schedule, interruption at step boundaries, progress, devices."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from refocus_ext.errors import RunFailed, UsageError

GRACE = 30  # seconds that a loader process outlives SIGTERM; torchrun kills what is left after as many


def warmup_cosine(step: int, steps: int, warmup: int, end: float) -> float:
    """Factor on the peak rate at `step` (0-based): linear over `warmup` steps, then a half cosine down to `end`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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


def gradient_norm(module: nn.Module, clip: float) -> float:
    """Norm over all gradients; they are clipped to `clip` if that is positive."""
    limit = clip if clip > 0 else math.inf
    norm: Any = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # sharded gradients: of all processes


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag that the loop reads between steps; a second one acts at once.

    Args:
        promise: what the user is told will happen now.
    """

    def __init__(self, promise: str = "saving at the end of this step") -> None:
        self.promise = promise
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
        print(f"\ninterrupted: {self.promise} (once more to stop at once)", file=sys.stderr, flush=True)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or 0)


def leave_signals_to_parent(_worker: int) -> None:
    """`worker_init_fn` of loaders: Ctrl-C, torchrun and schedulers signal the loader processes as well, and a loader that
    dies of it takes the process down that wanted to finish its step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # never ignored: Python's exit waits for its children


def from_loader(error: RunFailed) -> RunFailed:
    """The same error in its own words: one raised in a loader process arrives with that process's traceback in them."""
    return RunFailed(str(error).split("RunFailed: ")[-1].strip())


class Progress:
    """A bar on a terminal; a line every ten seconds elsewhere. Shows values, rate and time left."""

    def __init__(
        self,
        start: int,
        steps: int,
        images_per_step: float,
        every: float = 10.0,
        quiet: bool = False,
        unit: str = "step",
    ) -> None:
        self.start, self.steps, self.images, self.every, self.unit = start, steps, images_per_step, every, unit
        self.began = self.told = time.monotonic()
        self.quiet = quiet
        self.bar = tqdm(
            total=steps, initial=start, unit=unit, dynamic_ncols=True, disable=quiet or not sys.stderr.isatty()
        )

    def update(self, done: int, values: Mapping[str, float]) -> None:
        if self.quiet:
            return
        text = " ".join(f"{name} {_number(value)}" for name, value in values.items())
        now = time.monotonic()
        rate = (done - self.start) / max(1e-9, now - self.began)
        if not self.bar.disable:
            self.bar.set_postfix_str(f"{text} | {_number(rate * self.images)} img/s", refresh=False)
            self.bar.update(1)
        elif now - self.told >= self.every or done == self.steps:
            self.told = now
            plural = f"{self.unit}{'es' if self.unit.endswith('ch') else 's'}"
            pace = f"{rate:.2f} {plural}/s" if rate >= 0.1 else f"{1 / max(rate, 1e-9):.0f} s/{self.unit}"
            left = duration((self.steps - done) / max(rate, 1e-9))
            print(
                f"{self.unit} {done}/{self.steps}  {text}  {pace}  {_number(rate * self.images)} img/s  {left} left",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.quiet:
            return
        if self.bar.disable:
            print(text, flush=True)
        else:
            self.bar.write(text)

    def close(self) -> None:
        self.bar.close()


def _number(value: float) -> str:
    """'0.0123', '12.3', '12,345'."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
