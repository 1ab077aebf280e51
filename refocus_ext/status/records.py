"""metrics.jsonl, read without holding it: its last step, its last validation, its skipped steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

VALIDATION, SKIPPED = b'"val/', b'"train/skipped"'


@dataclass
class Records:
    """What metrics.jsonl says.

    Attributes:
        step: of the last whole record; None without one.
        validated: step of the last validation; None without one.
        validation: its values, without the prefix val/.
        skipped: the steps that were skipped because loss or gradient was not finite.
        broken: images that could not be decoded, so far.
        written: when the file was last written, seconds since 1970; None without a file.
    """

    step: int | None = None
    validated: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    broken: int = 0
    written: float | None = None


def read_records(run: Path) -> Records:
    """Lines that are not whole, as a killed process leaves them, are passed over. Only the last line and the few that matter
    are parsed: a long run has hundreds of megabytes."""
    found, file = Records(), run / "metrics.jsonl"
    if not file.is_file():
        return found
    found.written = file.stat().st_mtime
    with open(file, "rb") as lines:
        line = before = b""
        for line in lines:
            if VALIDATION in line or SKIPPED in line:
                _note(found, line)
            before = line if line.endswith(b"\n") else before
    for last in (before, line):
        _note(found, last, counts=False)
    return found


def _note(found: Records, line: bytes, counts: bool = True) -> None:
    """Adds a line; without `counts` only its step and the images that are broken by then."""
    try:
        record = json.loads(line)
        step = int(record["step"])
        values = {name[4:]: float(value) for name, value in record.items() if name.startswith("val/")}
        found.broken = int(record.get("train/broken_images", found.broken))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    found.step = step
    if counts and values:
        found.validation = {**(found.validation if step == found.validated else {}), **values}
        found.validated = step
    if counts and "train/skipped" in record:
        found.skipped.append(step)
