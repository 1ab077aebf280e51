"""The tab on which a student draws an image, and it comes into focus."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from refocus_ext.counting import counted
from refocus_ext.web.choices import checked_label, class_word, command_line, sample_options
from refocus_ext.web.desk import Desk
from refocus_ext.web.focusing import Focusing, focus

TITLE = "Sample"
WHAT = (
    "The student draws an image token map by token map, from 1x1 on. After each scale you see the image decoded from the "
    "tokens so far, and what the tokens of that scale changed."
)


def build(desk: Desk) -> Any:
    """Lays the tab out; returns the menu of classes, which the choice of a student fills."""
    gr.Markdown(WHAT)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            label = gr.Dropdown([], label="Class", elem_id="sample-class")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="sample-seed")
            cfg = gr.Slider(0, 10, 4, step=0.5, label="Guidance (cfg)", elem_id="sample-cfg")
            desk.guidances.append(cfg)
            draw = gr.Button("Draw", variant="primary", elem_id="sample-draw")
            status = gr.Markdown(elem_id="sample-status", elem_classes="status")
        with gr.Column(scale=5, min_width=280):
            picture = gr.HTML(padding=False, elem_id="sample-picture")

    def work(tell: Any, name: str, label: Any, seed: Any, cfg: Any) -> None:
        options = sample_options(seed, cfg)
        tell({status: f"Loading {name} ...", picture: ""})
        student = desk.models.student(name)
        label = checked_label(student, label)
        began = time.monotonic()

        def seen(image: Focusing) -> None:
            done, scales = len(image.prefixes), len(image.sides)
            tell({status: f"Scale {done} of {scales}: {counted(image.tokens, 'token')}.", picture: image.html()})

        focus(student, label, options, seen)
        same = command_line(
            *("sample", "--student", student.path, "--classes", class_word(student, label), "--count", 1),
            *("--seed", options.seed, "--cfg", f"{options.cfg:g}", "--steps-strip", "steps.png"),
        )
        tell({status: f"Drawn in {time.monotonic() - began:.1f} s. The same by command: {same}"})

    desk.on([draw.click], work, [desk.student, label, seed, cfg], [picture], status)
    return label
