"""A run's metrics and pictures in Weights & Biases (--log wandb), offline unless WANDB_MODE says otherwise.

W&B gets no step of its own: its steps must rise, but a resumed run repeats those after its checkpoint. Every record carries the
run's step as a value, `step`, over which W&B is told to draw. Steps that a killed run had logged are there twice, in one place.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import save_json

PROJECT = "refocus-var"
FILE = "wandb.json"  # of a run: its id there
STEP = "step"


def check_wandb() -> None:
    """Raises UsageError if the package is missing. (A folder named wandb, which other runs leave behind, is no package.)"""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:
        raise UsageError(
            f"--log wandb needs the package wandb; `{sys.executable} -m pip install wandb` installs it, or omit --log."
        )


class WandbBoard:
    """The run `run` in Weights & Biases; its files are in `run`/wandb.

    Its first call that fails is reported in one line, and is the last: a run goes on without it.

    Args:
        options: shown as the configuration.
    """

    def __init__(self, run: Path, options: Mapping[str, Any]) -> None:
        self.folder = run
        self._wandb: Any = None
        self._run: Any = None
        self._guarded(lambda: self._begin(options))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, lambda: dict(values))

    def image(self, step: int, name: str, image_HWC: Any) -> None:
        self._log(step, lambda: {name: self._wandb.Image(image_HWC)})

    def where(self) -> str:
        return f"Weights & Biases (if it is offline: `wandb sync {self.folder}/wandb/offline-*`)" if self._run else ""

    def close(self) -> None:
        if self._run is not None:
            self._guarded(self._run.finish)

    def _begin(self, options: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        # What the environment decides is not passed, for an argument would win over it.
        chosen = {
            "mode": None if os.environ.get("WANDB_MODE") else "offline",
            "project": None if os.environ.get("WANDB_PROJECT") else PROJECT,
            "name": None if os.environ.get("WANDB_NAME") else self.folder.resolve().name,
        }
        self._run = self._wandb.init(
            dir=str(self.folder),
            id=_id_of(self.folder),
            resume="allow",
            config=dict(options),
            allow_val_change=True,  # of a resumed run, device and intervals may be others
            settings=self._wandb.Settings(console="off"),  # the terminal stays the run's own
            **{name: value for name, value in chosen.items() if value is not None},
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def _log(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.log({**values(), STEP: step}))

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever W&B raises
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            print(
                f"warning: Weights & Biases failed ({reason}); the run goes on without it", file=sys.stderr, flush=True
            )


def _id_of(run: Path) -> str:
    """The run's id in Weights & Biases; made at its first start."""
    file = run / FILE
    try:
        return str(json.loads(file.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        made = uuid.uuid4().hex[:16]
        save_json(file, {"id": made})
        return made
