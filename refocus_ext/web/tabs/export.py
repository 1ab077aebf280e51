"""The tab that writes a student as plain upstream files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from refocus_ext.export.folder import Export
from refocus_ext.export.writing import check_exportable, prove_and_finish
from refocus_ext.sampling.student import Student
from refocus_ext.web.desk import Desk

TITLE = "Export"
WHAT = (
    "The chosen student and its VAE as plain upstream files on this machine, with safetensors twins and a model card: vanilla "
    "VAR's code loads them."
)


def build(desk: Desk, exports: Path) -> None:
    """Lays the tab out.

    Args:
        exports: the folder in which each export gets a folder.
    """
    gr.Markdown(
        f"{WHAT} They go to a folder of the student's name in `{exports}/`, the only place this page writes to."
    )
    prove = gr.Checkbox(
        True,
        label="prove that a clean process with upstream alone makes the same bytes from them",
        elem_id="export-prove",
    )
    start = gr.Button("Export", variant="primary", elem_id="export-start")
    status = gr.Markdown(elem_id="export-status", elem_classes="status")
    listed = gr.Textbox(
        label="What was written",
        lines=10,
        interactive=False,
        buttons=["copy"],
        elem_id="export-files",
        elem_classes="mono",
    )

    def work(tell: Any, name: str, prove: bool) -> None:
        tell({status: f"Loading {name} ...", listed: ""})
        student, lines = desk.models.student(name), list[str]()

        def say(line: str) -> None:
            lines.append(line)
            tell({listed: "\n".join(lines).strip()})

        folder = exports / Path(name).name
        tell({status: f"Writing {folder} ..."})
        equal = export_to(student, folder, prove, say)
        tell({status: f"{folder} is written." if equal else f"{folder}: upstream made other bytes from these files."})

    desk.on([start.click], work, [desk.student, prove], [listed], status)


def export_to(student: Student, folder: Path, prove: bool, say: Callable[[str], None]) -> bool:
    """Writes the files and proves them; False if upstream makes other bytes.

    Raises:
        UsageError: the folder holds other files, or the student cannot be exported.
        RunFailed: a file cannot be written.
    """
    check_exportable(student, folder)
    export = Export.of(student)
    export.write(folder)
    verdict = prove_and_finish(export, folder, "" if prove else "it was exported without the proof", say)
    return verdict is None or verdict.equal
