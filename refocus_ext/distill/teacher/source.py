"""The run whose trained teacher `--teacher frozen` takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.shown import NO_ALIASES, OWN
from refocus_ext.engine.checkpoints import checkpoints_of
from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import sha256

FILE = "teacher.pth"
WHOLE = ("separate", "ema")  # kinds whose file holds a whole network
ANOTHER = "give another --teacher-from"


@dataclass(frozen=True)
class TeacherSource:
    """A trained teacher.

    Args:
        file: its weights.
        checksum: their sha256.
        geometry: the shapes it was trained with.
        reads_aliases: whether it has alias gates.
    """

    file: Path
    checksum: str
    geometry: TeacherGeometry
    reads_aliases: bool


def open_source(run: Path, student: dict[str, Any], vae: dict[str, Any], tokenizer: dict[str, str]) -> TeacherSource:
    """The teacher of a finished distill run, for a student with these entries of its own config.json.

    Args:
        student: depth, num_classes and shared_aln, as in "student".
        vae: patch_nums and vocab_size, as in "vae".
        tokenizer: checksums of the tokenizer's weights.

    Raises:
        UsageError: there is none, it is of another kind, or it does not fit.
    """
    config = _config(run)
    options, trained = config["options"], checkpoints_of(run).newest_step()
    if (kind := options["teacher"]) not in WHOLE:
        raise UsageError(
            f"{run} was trained with --teacher {kind}, whose {FILE} is no whole network; give a run of --teacher "
            f"{' or '.join(WHOLE)}."
        )
    if not (run / FILE).is_file() or (trained is not None and trained < int(options["steps"])):
        raise UsageError(
            f"{run} has trained {trained or 0} of its {options['steps']} steps; rerun its command to finish it."
        )
    for entries, ours in (("student", student), ("vae", vae)):
        for name, value in ours.items():
            if (theirs := config[entries].get(name)) != value:
                raise UsageError(f"the teacher of {run} has {name} = {theirs}, the student {value}; {ANOTHER}.")
    if config["tokenizer"]["weights"] != tokenizer:
        raise UsageError(
            f"the teacher of {run} was trained on the tokens of another tokenizer ({config['tokenizer']['path']}); {ANOTHER}, "
            "or that --tokenizer."
        )
    checksum = sha256(run / FILE)
    if checksum != config.get("weights", {}).get(FILE, checksum):
        raise UsageError(f"{run / FILE} is not the file that its run wrote; restore it, or {ANOTHER}.")
    geometry = TeacherGeometry.from_dict(config["teacher"])
    return TeacherSource(run / FILE, checksum, geometry, options.get("teacher_aliases", OWN) != NO_ALIASES)


def _config(run: Path) -> dict[str, Any]:
    """
    Raises:
        UsageError: the folder is not that of a distill run.
    """
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
        ours = config["command"] == "distill" and {"student", "vae", "tokenizer", "teacher"} <= config.keys()
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(
            f"{run} is not the folder of a `distill` run; give one that was trained with --teacher separate."
        )
    return config
