"""The kinds of teachers, by the word of `distill --teacher` that chooses one.

They are named here and imported when they are needed, because help must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refocus_ext.distill.teacher.interface import AliasTeacher

OFF = "off"  # no teacher
EMA, FROZEN = "ema", "frozen"
# word -> (module, class, what it is)
KINDS = {
    "on": (
        "refocus_ext.distill.teacher.shared_weights",
        "Teacher",
        "the student's own weights and alias-gate cross-attention",
    ),
    "separate": ("refocus_ext.distill.teacher.separate", "SeparateTeacher", "a second full VAR"),
    "copies": ("refocus_ext.distill.teacher.copies", "CopiesTeacher", "trained copies of the last blocks"),
    EMA: ("refocus_ext.distill.teacher.ema", "EmaTeacher", "the student's averaged weights and trained alias gates"),
    FROZEN: ("refocus_ext.distill.teacher.still", "FrozenTeacher", "the teacher of --teacher-from, as it is"),
}


def teacher_class(word: str) -> type[AliasTeacher] | None:
    """The class of a kind; None for "off"."""
    if word == OFF:
        return None
    module, name, _ = KINDS[word]
    return getattr(importlib.import_module(module), name)
