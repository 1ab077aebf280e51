"""`bash run.sh export`: a student and its VAE as plain upstream files, verified to be vanilla VAR, and uploaded to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patches.upstream import load_upstream, submodule_present
from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.export import hub
from refocus_ext.export.builder_arguments import builder_obstacle, changes_for_notebook
from refocus_ext.export.folder import CARD, RECORD, Export, check_folder
from refocus_ext.export.model_card import model_card
from refocus_ext.export.options import ExportOptions
from refocus_ext.export.verify import Verdict, lines, verify
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.atomic import save_json, written_beside


def main(options: ExportOptions) -> int:
    """Runs the command; returns its exit code."""
    student = check_options(options)
    print(load_upstream().describe())
    print(student.describe())
    export = Export.of(student)
    if options.dry_run:
        return show(export, options)
    folder = Path(options.to)
    with named("--to"):
        export.write(folder)
    exported = load_student(folder)  # from the files, not from the networks in memory
    verdict, reason = prove(exported, options)
    finish(export, exported, verdict, reason)
    if verdict and not verdict.equal:
        return 1
    if options.push:
        with named("--push"):
            hub.push(options.push, folder, uploads(export, verdict), private=options.private)
    return 0


def check_options(options: ExportOptions) -> Student:
    """The student to export.

    Raises:
        UsageError: something is missing, or upstream's builder cannot build the student.
    """
    for name, value, what in (
        ("run", options.run, "the folder of a `bash run.sh distill` run"),
        ("to", options.to, "the folder to write the files to"),
    ):
        if not value:
            raise UsageError(f"export needs --{name}, {what}.")
    if options.private and not options.push:
        raise UsageError("--private needs --push OWNER/NAME.")
    if options.push:
        with named("--push"):
            hub.check_target(options.push, dry_run=options.dry_run)
    with named("--to"):
        check_folder(Path(options.to), of_export=True)
    with named("--run"):
        student = load_student(options.run, vae=options.vae or None)
    if student.files.var.parent.resolve() == Path(options.to).resolve():
        raise UsageError(f"--to {options.to} is the folder that --run {options.run} reads; choose another folder.")
    if obstacle := builder_obstacle(student):
        raise UsageError(f"--run {options.run} has {obstacle}, which upstream's build_vae_var cannot build.")
    return student


def prove(exported: Student, options: ExportOptions) -> tuple[Verdict | None, str]:
    """The verdict, or None and the reason."""
    if options.no_verify:
        return None, "it was exported with --no-verify"
    if not submodule_present():
        return None, "the submodule var_upstream was missing where it was exported"
    load_upstream("submodule")  # raises for another revision
    print("verifying with upstream alone, on the CPU ...", flush=True)
    return verify(exported), ""


def finish(export: Export, exported: Student, verdict: Verdict | None, reason: str) -> None:
    """Writes the record and the model card, and lists the files."""
    folder, record = exported.path, None
    if verdict and verdict.equal:
        record = verdict.record(exported)
    elif verdict:
        reason = "upstream alone made different bytes from these files"
    write_record(folder, record)
    with written_beside(folder / CARD) as beside:
        beside.write_text(model_card(export.geometry, record, reason))
    print(f"\n{folder}:")
    for name in [*export.names, *([RECORD] if record else [])]:
        print(f"  {name:<34}{hub.shown_size((folder / name).stat().st_size)}")
    print()
    print("\n".join(lines(verdict)) if verdict else f"not verified: {reason}")
    if changes := changes_for_notebook(export.geometry["build_vae_var"]):
        print(f"upstream's demo_sample.ipynb needs {', '.join(changes)} for this geometry; see README.md")


def write_record(folder: Path, record: dict[str, Any] | None) -> None:
    """Writes verified.json, or removes an old one."""
    try:
        if record:
            save_json(folder / RECORD, record)
        else:
            (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder / RECORD} could not be written ({error.strerror}).") from error


def uploads(export: Export, verdict: Verdict | None) -> list[str]:
    return [*export.names, *([RECORD] if verdict else [])]


def show(export: Export, options: ExportOptions) -> int:
    """Prints what would be written and uploaded."""
    target = f" and uploaded to {hub.address(options.push)}" if options.push else ""
    print(f"dry run: this would be written to {options.to}{target}")
    for name in [*export.names, *([] if options.no_verify else [f"{RECORD} (if it is verified)"])]:
        size = export.size(name)
        print(f"  {name:<34}{hub.shown_size(size) if size else 'small'}")
    return 0
