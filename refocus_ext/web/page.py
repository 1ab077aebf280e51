"""The page: the choice of a student, and the tabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from refocus_ext.sampling.sampler import for_pictures
from refocus_ext.web.choices import classes_of
from refocus_ext.web.desk import Desk
from refocus_ext.web.models import Models
from refocus_ext.web.tabs import compare, edit, export, picture, sample
from refocus_ext.web.work import Worker

TITLE = "ReFocus-VAR"
HEAD = "# ReFocus-VAR\nImages that come into focus: a vanilla VAR draws from blurred to sharp."
KEPT_FILES = 24 * 3600  # seconds for which an upload is kept


def build(models: Models, worker: Worker, exports: Path | None) -> gr.Blocks:
    """The page, not yet served.

    Args:
        exports: the folder for exports; None leaves that tab out.
    """
    desk = Desk(models, worker)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, KEPT_FILES)) as page:
        gr.Markdown(HEAD)
        if not models.students:
            with gr.Tab(picture.TITLE):
                picture.build(desk)
            return page
        names = list(models.students)
        desk.student = gr.Dropdown(names, value=names[0], label="Student", elem_id="student")
        about = gr.Markdown(elem_id="about", elem_classes="status")
        with gr.Tab(sample.TITLE):
            labels = sample.build(desk)
        with gr.Tab(picture.TITLE):
            coder = picture.build(desk)
        with gr.Tab(edit.TITLE):
            painted = edit.build(desk)
        with gr.Tab(compare.TITLE):
            compare.build(desk)
        if exports is not None:
            with gr.Tab(export.TITLE):
                export.build(desk, exports)

        def choose(tell: Any, name: str) -> None:
            tell({about: f"Loading {name} ..."})
            student = desk.models.student(name)
            classes = classes_of(student)
            none = student.num_classes
            tell(
                {
                    labels: gr.Dropdown(choices=classes, value=classes[0][1]),
                    painted: gr.Dropdown(choices=classes, value=none),
                    coder: name,
                    about: student.describe().removeprefix("student: "),
                    **dict.fromkeys(desk.guidances, for_pictures(demo=student.is_demo).cfg),
                }
            )

        filled = [labels, painted, coder, *desk.guidances]
        desk.on([desk.student.change, page.load], choose, [desk.student], filled, about)
    return page
