"""The kinds of teachers, by the word that chooses one."""

from __future__ import annotations

from refocus_ext.distill.teacher.interface import AliasTeacher
from refocus_ext.distill.teacher.separate import SeparateTeacher
from refocus_ext.distill.teacher.shared_weights import Teacher

# "off" is the absence of a teacher; the words are the choices of `distill --teacher`.
KINDS: dict[str, type[AliasTeacher] | None] = {"on": Teacher, "separate": SeparateTeacher, "off": None}
