"""What the options say about the teacher: checked against each other, and as the values that build it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refocus_ext.counting import counted
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.teacher.interface import TeacherSettings
from refocus_ext.distill.teacher.kinds import EMA, FROZEN, OFF, teacher_class
from refocus_ext.distill.teacher.shown import NO_ALIASES, OTHER, OWN
from refocus_ext.distill.teacher.source import TeacherSource, open_source
from refocus_ext.errors import UsageError, named
from refocus_ext.options.kinds import AUTO
from refocus_ext.tokens.trained_tokenizer import Tokenizer


def check_teacher(options: DistillOptions) -> None:
    """Raises UsageError for options of the teacher that do not fit each other."""
    word, shown = options.teacher, options.teacher_aliases
    kind = teacher_class(word)
    if options.given("teacher_decay") and word != EMA:
        raise UsageError(f"--teacher-decay {options.teacher_decay:g} is of --teacher ema, not of {word}; omit it.")
    if bool(options.teacher_from) != (word == FROZEN):
        if word == FROZEN:
            raise UsageError("--teacher frozen needs --teacher-from RUN, a finished run of --teacher separate or ema.")
        raise UsageError(
            f"--teacher-from {options.teacher_from} is of --teacher frozen, not of {word}; give that, or omit it."
        )
    if word == EMA and options.parallel == "fsdp":
        raise UsageError(
            "--teacher ema averages whole weights, which --parallel fsdp does not have on any process; choose --parallel ddp."
        )
    if shown != OWN and kind is None:
        raise UsageError(f"--teacher-aliases {shown} says what a teacher is shown, but --teacher is off; omit it.")
    if shown == NO_ALIASES and kind and kind.needs_aliases:
        raise UsageError(
            f"--teacher-aliases none makes --teacher {word} no teacher ({kind.needs_aliases}); choose --teacher ema, or "
            "--teacher-aliases constant."
        )


def check_shown(options: DistillOptions, processes: int) -> None:
    """Raises UsageError if a micro-batch has no other image to show."""
    if options.teacher_aliases != OTHER or options.accumulate == AUTO:
        return
    if options.batch_size // options.accumulate // processes < 2:
        raise UsageError(
            f"--teacher-aliases other shows alias tokens of another image of a micro-batch, but --batch-size {options.batch_size} "
            f"in {counted(options.accumulate, 'micro-batch', 'micro-batches')} on {counted(processes, 'process', 'processes')} "
            "leaves one image in each; raise it, or lower --accumulate."
        )


def teacher_source(
    options: DistillOptions, student: dict[str, Any], vae: dict[str, Any], tokenizer: Tokenizer
) -> TeacherSource:
    """The teacher of --teacher-from, for a student with these entries in config.json.

    Raises:
        UsageError: it does not fit the student, or an option says otherwise than its run.
    """
    with named("--teacher-from"):
        source = open_source(Path(options.teacher_from), student, vae, tokenizer.checksums())
    if source.reads_aliases != (options.teacher_aliases != NO_ALIASES):
        theirs = "was trained with --teacher-aliases none" if not source.reads_aliases else "reads alias tokens"
        way = "give that here too" if not source.reads_aliases else "omit --teacher-aliases none"
        raise UsageError(f"--teacher-from {options.teacher_from}: its teacher {theirs}; {way}.")
    geometry = source.geometry
    of_run = {
        "teacher_blocks": geometry.blocks,
        "mask": geometry.mask,
        "alias_scales": geometry.alias_scales or 0,
        "alias_values": geometry.values,
    }
    for name in options.given(*of_run):
        if getattr(options, name) != of_run[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} {getattr(options, name)} is not that of the teacher of {options.teacher_from} ({of_run[name]}); omit it."
            )
    return source


def teacher_settings(options: DistillOptions, source: TeacherSource | None = None) -> TeacherSettings:
    """What the options say about the teacher besides its geometry."""
    return TeacherSettings(
        options.teacher_aliases != NO_ALIASES, options.teacher_decay, source.file if source else None
    )


def trains_gates(options: DistillOptions) -> bool:
    """Whether a teacher's alias gates are trained."""
    return options.teacher not in (OFF, FROZEN) and options.teacher_aliases != NO_ALIASES
