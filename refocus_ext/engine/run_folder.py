"""The run folder: configuration, metrics, TensorBoard, checkpoints, picture and finished weights of one run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refocus_ext.engine.checkpoints import checkpoints_of
from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import remove_torn, save_json, sha256, written_beside


class RunFolder:
    """Opens or creates `path` for the run that `config` describes.

    Args:
        config: JSON-serializable; to resume an existing run, its entry "identity" must equal that run's.
        keep: number of checkpoints kept.
        fresh: move an existing run aside instead of resuming it.

    Raises:
        UsageError: the folder holds another run or something else, or cannot be written.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, fresh: bool = False, keep: int = 2) -> None:
        self.path = path
        self.moved_to = self._move_aside() if fresh else None
        check_run_folder(path, config["identity"])
        self.config = dict(config) | self._weights()
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_torn(path)
            save_json(path / "config.json", self.config)
        except OSError as error:
            raise UsageError(f"cannot write to --out {path} ({error.strerror}); choose another folder.") from None
        self.checkpoints = checkpoints_of(path, keep)
        self._metrics: Any = None
        self._board: Any = None

    def _move_aside(self) -> Path | None:
        if not (self.path / "config.json").is_file():
            return None
        number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.{n}").exists())
        return self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))

    def _weights(self) -> dict[str, Any]:
        """Checksums of weights that an earlier invocation of this run wrote."""
        file = self.path / "config.json"
        known = json.loads(file.read_text()).get("weights") if file.is_file() else None
        return {"weights": known} if known else {}

    def holds(self, *names: str) -> bool:
        """Whether these weight files exist and match their checksums in config.json."""
        known = self.config.get("weights", {})
        files = {name: self.path / name for name in names}
        return all(file.is_file() and sha256(file) == known.get(name) for name, file in files.items())

    def record_weights(self, *names: str) -> None:
        """Records the sha256 of weight files in config.json, next to the pyramid they belong to."""
        self.config["weights"] = self.config.get("weights", {}) | {name: sha256(self.path / name) for name in names}
        save_json(self.path / "config.json", self.config)

    def require_space(self, need: int) -> None:
        """Raises UsageError unless `need` bytes are free on the disk of the run folder."""
        if (free := shutil.disk_usage(self.path).free) < need:
            raise UsageError(
                f"--out {self.path} has {free / 2**30:.2f} GiB free, but checkpoints and weights of this run need "
                f"{need / 2**30:.2f} GiB; free some space or choose another --out."
            )

    # ------------------------------------------------------------------ metrics

    def begin_metrics(self, step: int) -> None:
        """Opens metrics.jsonl and TensorBoard to continue after `step`; later records (of lost steps) are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        file = self.path / "metrics.jsonl"
        if file.is_file():
            kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
            with written_beside(file) as beside:
                beside.write_text("".join(line + "\n" for line in kept))
        self._metrics = open(file, "a", buffering=1)  # noqa: SIM115 - closed in `close`
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """One record in metrics.jsonl and one scalar each in TensorBoard."""
        named = {f"{prefix}{name}": float(value) for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **named}) + "\n")
        for name, value in named.items():
            self._board.add_scalar(name, value, step)

    def log_image(self, step: int, name: str, image_HWC: Any) -> None:
        self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        for open_file in (self._metrics, self._board):
            if open_file is not None:
                open_file.close()


def check_run_folder(path: Path, identity: Mapping[str, Any]) -> None:
    """Raises UsageError where `path` cannot be the folder of the run with this identity."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; choose a folder.")
    file = path / "config.json"
    if not file.is_file():
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"--out {path} holds files but no run; choose an empty or new folder.")
        return
    try:
        theirs = json.loads(file.read_text())["identity"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file} is not a run's configuration; choose another --out.") from None
    ours = json.loads(json.dumps(identity))
    if changed := [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]:
        shown = [f"{key} = {_short(theirs.get(key))}, this one has {_short(ours.get(key))}" for key in changed[:4]]
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        why = " (the learning-rate schedule depends on the steps)" if "steps" in changed else ""
        raise UsageError(
            f"--out {path} holds a run with {' and '.join(shown)}{more}{why}; choose another --out, or --resume never "
            "to move that run aside and start a new one."
        )


def _short(value: Any) -> str:
    """A value for a message; checksums (file -> sha256) are shortened to their first digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(entry)[:12]}" for name, entry in value.items())
    return str(value)


def _step_of(line: str) -> float:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(line)["step"]
    return float("inf")  # an incomplete last line, left by a killed process
