"""The progress display of training loops: a bar or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from refocus_ext.counting import duration


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
