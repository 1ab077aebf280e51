"""Run folders as training leaves them, written by hand: for tests that read them."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

from runs import parsed

from refocus_ext.engine.life_sign import FILE, LifeSign


def write_folder(
    run: Path,
    *words: str,
    steps: int | None = None,
    saved: int | None = None,
    validation: dict[str, float] | None = None,
    validated: int | None = None,
    recorded: bool = True,
    **config: Any,
) -> Path:
    """A run of the command line `words` after `steps` recorded steps, with a checkpoint after `saved`.

    Args:
        validation: values of the validation at step `validated`.
        recorded: whether config.json has the command line, as this version writes it.
    """
    options = parsed(*words, "--out", str(run))
    run.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {"command": words[0], "identity": options.identity(), "options": options.to_dict()}
    if recorded:
        line = " ".join(["bash run.sh", *words, "--out", str(run)])
        entries["invocation"] = {"line": line, "folder": str(Path.cwd())}
    (run / "config.json").write_text(json.dumps(entries | config))
    if steps is not None:
        records: list[dict[str, float]] = [{"step": step, "train/loss": 1.0} for step in range(1, steps + 1)]
        if validation is not None:
            at = validated or steps
            records.insert(at, {"step": at} | {f"val/{name}": value for name, value in validation.items()})
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if saved is not None:
        write_checkpoint(run, saved)
    return run


def write_checkpoint(run: Path, step: int) -> Path:
    """A file that looks like a checkpoint from outside: its name has its checksum, and it is a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data", f"state after {step} steps")
    data = buffer.getvalue()
    (run / "checkpoints").mkdir(exist_ok=True)
    path = run / "checkpoints" / f"step-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    path.write_bytes(data)
    return path


def write_sign(run: Path, **changes: Any) -> None:
    """The life sign of this process in a run, with changes; it stays until it is removed."""
    sign = LifeSign(run)
    found = json.loads((run / FILE).read_text())
    sign.end()
    if "beats" in changes:  # written with the last of them
        changes = {"at": changes["beats"][-1][1], **changes}
    (run / FILE).write_text(json.dumps(found | changes))


def beats(pace: float, *steps: int, ago: float = 0.0) -> list[tuple[int, float]]:
    """Signs of a run that takes `pace` seconds a step; the last one was `ago` seconds ago."""
    now = time.time() - ago
    return [(step, now - pace * (steps[-1] - step)) for step in steps]
