"""The kinds of teachers by name."""

from __future__ import annotations

from refocus_ext.distill.teacher.interface import AliasTeacher
from refocus_ext.distill.teacher.separate import SeparateTeacher
from refocus_ext.distill.teacher.shared_weights import Teacher

# The names are the choices of `distill --teacher`, except "off", which is no teacher.
KINDS: dict[str, type[AliasTeacher] | None] = {"on": Teacher, "separate": SeparateTeacher, "off": None}
