"""`bash run.sh export`: a student and its VAE as plain upstream files, verified to be vanilla VAR, and uploaded to the Hub."""

from __future__ import annotations

from pathlib import Path

from patches.upstream import load_upstream
from refocus_ext.errors import UsageError, named
from refocus_ext.export import hub
from refocus_ext.export.folder import RECORD, Export, check_folder
from refocus_ext.export.options import ExportOptions
from refocus_ext.export.verify import Verdict
from refocus_ext.export.writing import check_exportable, prove_and_finish
from refocus_ext.sampling.student import Student, load_student


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
    verdict = prove_and_finish(export, folder, "it was exported with --no-verify" if options.no_verify else "")
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
        check_exportable(student, Path(options.to))
    return student


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
