"""The tab on which two students draw from the same seeds."""

from __future__ import annotations

from typing import Any

import gradio as gr
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.sampling.jobs import check_same_classes, draw_images, guidance_of, picture_labels, ready
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.student import Student
from refocus_ext.web.choices import command_line, sample_options
from refocus_ext.web.desk import Desk
from refocus_ext.web.figures import Figure, figures, shown

TITLE = "Compare"
WHAT = (
    "Two students draw the same classes from the same seeds: what differs is the students alone. Pictures in the same place "
    "belong together."
)
MOST = 16


def build(desk: Desk) -> None:
    """Lays the tab out. The first student is the one that is chosen above."""
    gr.Markdown(WHAT)
    names = list(desk.models.students)
    if len(names) == 1:
        gr.Markdown(f"This page has one student, {names[0]}: start it with `--students A B` for two.")
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            other = gr.Dropdown(names, value=names[-1], label="Beside the chosen student", elem_id="compare-other")
            words = gr.Textbox(
                label="Classes, by name or number", placeholder="empty: evenly over all", elem_id="compare-classes"
            )
            count = gr.Slider(1, MOST, 4, step=1, label="Images", elem_id="compare-count")
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="compare-seed")
                cfg = gr.Number(4, label="Guidance (cfg)", min_width=100, elem_id="compare-cfg")
                desk.guidances.append(cfg)
            draw = gr.Button("Draw both", variant="primary", elem_id="compare-draw")
            status = gr.Markdown(elem_id="compare-status", elem_classes="status")
        with gr.Column(scale=5, min_width=280):
            picture = gr.HTML(padding=False, elem_id="compare-picture")

    def work(tell: Any, first: str, second: str, words: str, count: Any, seed: Any, cfg: Any) -> None:
        options = compare_options(words, count, seed, cfg)
        tell({status: f"Loading {first} and {second} ...", picture: ""})
        pair = [desk.models.student(name) for name in (first, second)]
        check_same_classes(*pair)
        labels, html = picture_labels(pair[0], options, options.count or 1), ""
        for student, name in zip(pair, (first, second), strict=True):
            tell({status: f"{name} draws ..."})
            html += row_html(name, student, labels, drawn(student, labels, options))
            tell({picture: html})
        tell({status: f"The same by command: {same_command(pair, options)}"})

    desk.on([draw.click], work, [desk.student, other, words, count, seed, cfg], [picture], status)


def compare_options(words: str, count: Any, seed: Any, cfg: Any) -> SampleOptions:
    """
    Raises:
        UsageError: a number is missing or outside its limits.
    """
    if count is None or not 1 <= count <= MOST:
        raise UsageError(f"{count} images cannot be drawn here; choose 1 to {MOST}.")
    return sample_options(seed, cfg, classes=(words or "").strip(), count=int(count))


def drawn(student: Student, labels: list[int], options: SampleOptions) -> Tensor:
    """The images (B,3,H,W) in [0,1] that `sample --compare` draws."""
    with ready(student, options):
        return draw_images(student, options, labels, guidance_of(student, options))


def row_html(name: str, student: Student, labels: list[int], image_B3HW: Tensor) -> str:
    """The images of one student with their classes."""
    each = [Figure(shown(image), student.class_name(label)) for image, label in zip(image_B3HW, labels, strict=True)]
    return figures(each, name)


def same_command(pair: list[Student], options: SampleOptions) -> str:
    classes = ["--classes", options.classes] if options.classes else []
    return command_line(
        *("sample", "--compare", *(student.path for student in pair), *classes, "--count", options.count),
        *("--seed", options.seed, "--cfg", f"{options.cfg:g}"),
    )
