"""What is chosen on the page as the options of `sample`, and the command line that does the same."""

from __future__ import annotations

import contextlib
import math
import shlex
from typing import Any

from refocus_ext.errors import UsageError
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.student import Student

LARGEST_SEED, LARGEST_CFG = 2**63 - 1, 20.0


def classes_of(student: Student) -> list[tuple[str, int]]:
    """The classes that it was trained on by name and label, and no class."""
    labels = (*student.trained_classes, student.num_classes)
    return [(student.class_name(label), label) for label in labels]


def checked_label(student: Student, label: Any) -> int:
    """
    Raises:
        UsageError: no class is chosen, or another student's.
    """
    if label is None:
        raise UsageError("no class is chosen; choose one from the menu.")
    if not 0 <= label <= student.num_classes:
        raise UsageError(f"class {label} is none of this student; choose one from the menu.")
    return int(label)


def sample_options(seed: Any, cfg: Any, **others: Any) -> SampleOptions:
    """
    Raises:
        UsageError: a number is missing or outside its limits.
    """
    if seed is None or not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed {'' if seed is None else seed} is not a whole number from 0 on; give one, such as 0.")
    if cfg is None or not (math.isfinite(cfg) and 0 <= cfg <= LARGEST_CFG):
        raise UsageError(f"guidance {cfg} is not between 0 and {LARGEST_CFG:g}; 4 is VAR's own for pictures.")
    return SampleOptions(seed=int(seed), cfg=float(cfg), **others)


def command_line(*words: object) -> str:
    """'`bash run.sh sample --seed 0`', as Markdown."""
    return f"`bash run.sh {shlex.join(str(word) for word in words)}`"


def class_word(student: Student, label: int) -> str:
    """The value of --classes for a label: its name where that means it, or else its number."""
    if label == student.num_classes:
        return "none"
    name = student.class_name(label)
    with contextlib.suppress(UsageError):
        if student.labels(name) == [label]:
            return name
    return str(label)
