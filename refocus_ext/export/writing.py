"""Writes the folder of an export and proves it: what `export` and the page do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from patches.upstream import load_upstream, submodule_present
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.export import hub
from refocus_ext.export.builder_arguments import builder_obstacle, changes_for_notebook
from refocus_ext.export.folder import CARD, RECORD, Export
from refocus_ext.export.model_card import model_card
from refocus_ext.export.verify import Verdict, lines, verify
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.atomic import save_json, written_beside

Say = Callable[[str], None]


def say_at_once(line: str) -> None:
    print(line, flush=True)


def check_exportable(student: Student, folder: Path) -> None:
    """Raises UsageError if the student would be written over itself, or upstream's builder cannot build it."""
    if student.files.var.parent.resolve() == folder.resolve():
        raise UsageError(f"{folder} is the folder that {student.path} is read from; choose another folder.")
    if obstacle := builder_obstacle(student):
        raise UsageError(f"{student.path} has {obstacle}, which upstream's build_vae_var cannot build.")


def prove_and_finish(export: Export, folder: Path, unproved: str = "", say: Say = say_at_once) -> Verdict | None:
    """Proves a written export and writes its record and model card; returns None where it is not proved.

    Args:
        unproved: why it is not to be proved; "" proves it.
        say: takes what is for the user, line by line.
    """
    exported = load_student(folder)  # from the files, not from the networks in memory
    verdict, reason = (None, unproved) if unproved else prove(exported, say)
    finish(export, exported, verdict, reason, say)
    return verdict


def prove(exported: Student, say: Say) -> tuple[Verdict | None, str]:
    """The verdict, or None and the reason."""
    if not submodule_present():
        return None, "the submodule var_upstream was missing where it was exported"
    load_upstream("submodule")  # raises for another revision
    say("verifying with upstream alone, on the CPU ...")
    return verify(exported), ""


def finish(export: Export, exported: Student, verdict: Verdict | None, reason: str, say: Say) -> None:
    """Writes the record and the model card, and lists the files."""
    folder, record = exported.path, None
    if verdict and verdict.equal:
        record = verdict.record(exported)
    elif verdict:
        reason = "upstream alone made different bytes from these files"
    write_record(folder, record)
    with written_beside(folder / CARD) as beside:
        beside.write_text(model_card(export.geometry, record, reason))
    say(f"\n{folder}:")
    for name in [*export.names, *([RECORD] if record else [])]:
        say(f"  {name:<34}{hub.shown_size((folder / name).stat().st_size)}")
    say("")
    say("\n".join(lines(verdict)) if verdict else f"not verified: {reason}")
    if changes := changes_for_notebook(export.geometry["build_vae_var"]):
        say(f"upstream's demo_sample.ipynb needs {', '.join(changes)} for this geometry; see README.md")


def write_record(folder: Path, record: dict[str, Any] | None) -> None:
    """Writes verified.json, or removes an old one."""
    try:
        if record:
            save_json(folder / RECORD, record)
        else:
            (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder / RECORD} could not be written ({error.strerror}).") from error
