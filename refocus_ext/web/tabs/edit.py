"""The tab on which a box of a picture is repainted by the student."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.images.crops import to_tensor
from refocus_ext.sampling.editing import Box, Edit, edit, kept_region, parse_box
from refocus_ext.sampling.jobs import guidance_of, ready
from refocus_ext.sampling.student import Student
from refocus_ext.web.boxes import box_of, cell_at, draw_box, enlarged, middle_box
from refocus_ext.web.choices import checked_label, sample_options
from refocus_ext.web.desk import Desk, Values, at_once
from refocus_ext.web.figures import Figure, figures, shown
from refocus_ext.web.uploads import read_upload

TITLE = "Edit"
WHAT = (
    "A box of your picture is repainted: the tokens outside it are kept, the student draws the others. Tap two opposite "
    "corners on the picture, or type the box in pixels. A box is made of whole latent cells of 16 pixels."
)
DONE = "The kept tokens are unchanged; near the box the decoder blends old and new."
COPIES = 2


def build(desk: Desk) -> Any:
    """Lays the tab out; returns the menu of classes."""
    gr.Markdown(WHAT)
    square, corner = gr.State(None), gr.State(None)  # the picture as the student sees it; the first of two taps
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            file = gr.File(label="Picture", file_types=["image"], height=150, elem_id="edit-file")
            label = gr.Dropdown([], label="Class of what is painted", elem_id="edit-class")
            box = gr.Textbox(label="Box: x0,y0,x1,y1", elem_id="edit-box")
            outside = gr.Checkbox(False, label="keep the box, repaint around it", elem_id="edit-outside")
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="edit-seed")
                cfg = gr.Number(4, label="Guidance (cfg)", min_width=100, elem_id="edit-cfg")
                desk.guidances.append(cfg)
            paint = gr.Button("Repaint", variant="primary", elem_id="edit-paint")
            status = gr.Markdown(elem_id="edit-status", elem_classes="status")
        with gr.Column(scale=5, min_width=280):
            view = gr.Image(show_label=False, format="png", interactive=False, buttons=[], elem_id="edit-view")
            result = gr.HTML(padding=False, elem_id="edit-result")

    def look(tell: Any, name: str, path: str | None) -> None:
        tell({square: None, corner: None, result: "", view: None})
        if not path:
            tell({status: "", box: ""})
            return
        tell({status: f"Loading {name} ..."})
        size = desk.models.student(name).image_size
        found, text = shown(read_upload(path, size) * 0.5 + 0.5), middle_box(size)
        tell({square: found, box: text, view: draw_box(found, parse_box(text, size)[0])})
        tell({status: f"The central square at the student's {size} pixels."})

    def tap(found: Image.Image | None, first: Any, event: gr.SelectData) -> Values:
        if found is None or None in event.index:  # a picture that is not there yet has no coordinates
            return {}
        cell = cell_at(event.index[0], event.index[1], enlarged_side(found), found.width)
        if first is None:
            return {corner: cell, view: draw_box(found, None, cell), status: "Now the opposite corner."}
        text = box_of(first, cell)
        drawn = draw_box(found, parse_box(text, found.width)[0])
        return {corner: None, box: text, view: drawn, status: f"The box is {text}."}

    def typed(found: Image.Image | None, text: str) -> Values:
        if found is None:
            return {}
        try:
            return {corner: None, view: draw_box(found, parse_box(text, found.width)[0]), status: ""}
        except UsageError as error:
            return {corner: None, view: draw_box(found, None), status: str(error)}

    def repaint(
        tell: Any, name: str, found: Image.Image | None, text: str, outside: bool, label: Any, seed: Any, cfg: Any
    ) -> None:
        if found is None:
            raise UsageError("no picture is chosen; choose one first.")
        tell({status: f"Loading {name} ...", result: ""})
        student = desk.models.student(name)
        scales = len(student.geometry.patch_nums)

        def seen(scale: int, f_hat: Tensor) -> None:
            tell({status: f"Scale {scale + 1} of {scales}."})

        label = checked_label(student, label)
        made = repainted(student, to_tensor(found)[None], text, outside, label, (seed, cfg), seen)
        tell({result: edit_html(made, student, label), status: DONE})

    desk.on(
        [file.upload, file.clear, desk.student.change],
        look,
        [desk.student, file],
        [square, corner, box, view, result],
        status,
    )
    at_once(view.select, tap, [square, corner], [corner, box, view, status])
    at_once(box.submit, typed, [square, box], [corner, view, status])
    at_once(box.blur, typed, [square, box], [corner, view, status])
    desk.on([paint.click], repaint, [desk.student, square, box, outside, label, seed, cfg], [result], status)
    return label


def enlarged_side(picture: Image.Image) -> int:
    """The width of the picture in which taps are counted, pixels."""
    return enlarged(picture).width


def repainted(
    student: Student, x_13HW: Tensor, text: str, outside: bool, label: int, numbers: tuple[Any, Any], watch: Any
) -> Edit:
    """The edit of an upload, twice.

    Args:
        text: the box.
        numbers: seed and guidance.

    Raises:
        UsageError: a value is missing or wrong, or the picture is of another student's size.
    """
    if x_13HW.shape[-1] != student.image_size:
        raise UsageError(
            f"the picture was read at {x_13HW.shape[-1]} pixels, but the student has {student.image_size}; choose it again."
        )
    options = sample_options(*numbers)
    box: Box = parse_box(text, student.image_size)[0]
    kept = kept_region(box, student.geometry.patch_nums[-1], outside)
    with ready(student, options):
        return edit(student, x_13HW, kept, [label] * COPIES, options.seed, guidance_of(student, options), watch)


def edit_html(made: Edit, student: Student, label: int) -> str:
    """What stays, the decoded tokens of the picture, and the edits."""
    kept = made.kept_HW.cpu()
    stays = made.original_3HW.cpu() * kept + 0.5 * ~kept
    drawn = [
        Figure(shown(stays), "what stays"),
        Figure(shown(made.reconstruction_3HW), "its tokens, decoded"),
    ]
    for number, (image, psnr) in enumerate(zip(made.edited_B3HW, made.kept_psnr(), strict=True), 1):
        note = f"kept part: PSNR {psnr:.1f} dB to its tokens, decoded"
        drawn.append(Figure(shown(image), f"repainted {number}: {student.class_name(label)}", note))
    return figures(drawn, "Repainted", kind="large")
