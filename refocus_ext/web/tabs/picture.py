"""The tab that takes a picture of one's own apart: its focus pyramid, its tokens, its reconstructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from refocus_ext.errors import UsageError
from refocus_ext.evidence.aliasing.pyramid_figure import draw, look
from refocus_ext.optics.names import BLURS
from refocus_ext.web.desk import Desk
from refocus_ext.web.models import DEMO, Coder
from refocus_ext.web.taken_apart import Coded, code, decoded_html, in_words, tokens_html, with_blur
from refocus_ext.web.uploads import read_upload

TITLE = "Your picture"
WHAT = (
    "A picture of your own as the tokenizer sees it: its focus pyramid with spectra, its tokens, and the images decoded from "
    "them, once with every scale from the sharp picture, as in VAR, and once with each scale from its focus state."
)
OWN = "as it was trained"
MOST_RADIUS = 3


def build(desk: Desk) -> Any:
    """Lays the tab out; returns the menu of tokenizers, which follows the choice of a student."""
    gr.Markdown(WHAT)
    names = desk.models.coders
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            coder = gr.Dropdown(
                names, value=names[0], label="Tokenizer of", visible=len(names) > 1, elem_id="picture-coder"
            )
            file = gr.File(label="Picture", file_types=["image"], height=150, elem_id="picture-file")
            blur = gr.Dropdown([OWN, *BLURS], value=OWN, label="Blur of the focus states", elem_id="picture-blur")
            radius = gr.Slider(
                0, MOST_RADIUS, 1, step=0.25, label="Radius, times that of training", elem_id="picture-radius"
            )
            take = gr.Button("Take apart", variant="primary", elem_id="picture-take")
            status = gr.Markdown(elem_id="picture-status", elem_classes="status")
        with gr.Column(scale=5, min_width=280):
            result = gr.HTML(padding=False, elem_id="picture-result")
    with gr.Accordion("Focus pyramid: D, L, A and F of every state, with spectra", open=True):
        pyramid_figure = gr.Image(
            show_label=False, format="png", buttons=["download", "fullscreen"], elem_id="picture-pyramid"
        )
    with gr.Accordion("The tokens as numbers", open=False):
        numbers = gr.Textbox(
            show_label=False,
            lines=6,
            max_lines=12,
            buttons=["copy"],
            interactive=False,
            elem_id="picture-numbers",
            elem_classes="mono",
        )

    def work(tell: Any, name: str, path: str | None, blur: str, radius: float) -> None:
        tell({status: f"Loading {name} ..."})
        found = desk.models.coder(name)
        pyramid = with_blur(
            found.pyramid,
            found.trained_with if blur == OWN else blur,
            found.pyramid.rho_max * wider(radius),
        )
        x_13HW = read_upload(path, pyramid.image_size)[None]
        tell({status: "Encoding ...", result: "", pyramid_figure: None, numbers: ""})
        plain = code(found, x_13HW, with_blur(pyramid, "none", pyramid.rho_max))
        coded = code(found, x_13HW, pyramid) if pyramid.refocuses else None
        tell({result: _html(_sides(found), plain, coded)})
        tell({numbers: _as_json(plain, coded), status: "Drawing the focus pyramid ..."})
        figure = draw(pyramid, x_13HW, look(pyramid, x_13HW, periodic=False), Path(path or "").name, periodic=False)
        tell({pyramid_figure: figure, status: _summary(found, plain, coded)})

    outputs = [result, pyramid_figure, numbers]
    desk.on([take.click, file.upload], work, [coder, file, blur, radius], outputs, status)
    return coder


def wider(times: float | None) -> float:
    """
    Raises:
        UsageError: it is no such factor.
    """
    if times is None or not 0 <= times <= MOST_RADIUS:
        raise UsageError(f"a radius of {times} times that of training cannot be drawn; choose 0 to {MOST_RADIUS}.")
    return times


def _sides(coder: Coder) -> tuple[int, ...]:
    return tuple(coder.vae.quantize.v_patch_nums)


def _html(sides: tuple[int, ...], plain: Coded, coded: Coded | None) -> str:
    """What the tokens decode to and their maps: of the focus states, unless there is no blur, and of the sharp picture."""
    sharp = "Every scale takes its tokens from the sharp picture, as in VAR."
    decoded, maps = (
        decoded_html(plain, sides, "Decoded from sharp tokens", sharp),
        tokens_html(plain, sides, "Sharp tokens"),
    )
    if coded is None:
        return decoded + maps
    focus = f"Each scale takes its tokens from its focus state: {in_words(coded.pyramid)}. PSNR is that to the sharp picture."
    return (
        decoded_html(coded, sides, "Decoded from focus tokens", focus)
        + decoded
        + tokens_html(coded, sides, "Focus tokens", plain)
        + maps
    )


def _as_json(plain: Coded, coded: Coded | None) -> str:
    kinds = {"sharp": plain} | ({"focus": coded} if coded else {})
    return json.dumps({name: [idx.tolist() for idx in one.tokens] for name, one in kinds.items()})


def _summary(coder: Coder, plain: Coded, coded: Coded | None) -> str:
    trained = f"The tokenizer was trained on {coder.trained_on} with blur {coder.trained_with}"
    if coder.recorded is None:
        trained = (
            "The files record no focus pyramid: the tokenizer is taken for plain VAR's, and the pyramid for the paper's"
        )
    if coder.trained_on == DEMO:
        trained += (
            ": it has seen 19 pictures and draws yours out of them. `tokenizer --data FOLDER` trains one on yours"
        )
    last = f"all tokens: PSNR {plain.psnr()[-1]:.1f} dB sharp" + (f", {coded.psnr()[-1]:.1f} dB focus" if coded else "")
    other = coded is not None and coded.pyramid.blur != coder.trained_with
    warning = " It never saw such focus states in training." if other else ""
    return f"{trained}.{warning} From {last}."
