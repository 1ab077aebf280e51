"""`bash run.sh pyramid IMAGE`: figure 2 of the paper for any picture, with the spectrum of every view below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from refocus_ext.errors import UsageError, named
from refocus_ext.evidence.aliasing.options import PyramidOptions
from refocus_ext.images.photographs import load_square
from refocus_ext.images.picture import BACKGROUND, FAINT, INK, font_of, save_png, to_image
from refocus_ext.optics.charts import chart
from refocus_ext.optics.names import BLUR_TABLE, CHARTS
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.optics.spectrum import FLOOR, dB, energy, spectrum
from refocus_ext.storage.results import results_file, write_numbers

SIDE = 256  # pixels of a drawn view, a multiple of the paper's view sizes
GAP, LEFT, HEAD = 8, 152, 92
ROUNDING = 1e-6  # RMS of a residual, image units, up to which it is what fp32 leaves of zero
RANGE = 80.0  # dB of a drawn spectrum, from its brightest frequency down
MARK = (235, 64, 52)


def main(options: PyramidOptions) -> int:
    """Runs the command; returns its exit code."""
    if options.image and options.chart:
        raise UsageError(f"{options.image} and --chart {options.chart} are both given; give one of them.")
    try:
        pyramid = FocusPyramid(
            image_size=options.image_size, states=options.focus_states, rho_max=options.rho_max, blur=options.blur
        )
        x = None if options.image else chart(options.chart or CHARTS[0], options.image_size)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    with named("--out"):
        out = results_file(options.out)
    with named("--json"):
        json = results_file(options.json) if options.json else None
    name = Path(options.image).name if options.image else f"chart {options.chart or CHARTS[0]}"
    periodic = x is not None
    if x is None:
        x = load_square(options.image, options.image_size)[None]
    for warning in pyramid.rayleigh_warnings():
        print(f"note: {warning}")
    states = look(pyramid, x, periodic)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(out, draw(pyramid, x, states, name, periodic))
    print("\n".join(table(pyramid, states)))
    print(f"\nwrote {out}")
    if json:
        with named("--json"):
            write_numbers(json, numbers(pyramid, name, states))
    return 0


@dataclass(frozen=True)
class StateViews:
    """The views (1,3,.,.) of one state, and A_k's energy in shares, and the alias of D_k and L_k in dB.

    `alias_*_dB` is alias over passband energy within the view (-200 if there is none).
    """

    D: Tensor
    L: Tensor
    A: Tensor
    F: Tensor
    alias_D_dB: float
    alias_L_dB: float
    A_rms: float
    A_in_band: float
    A_alias: float


def look(pyramid: FocusPyramid, x_1CHH: Tensor, periodic: bool) -> list[StateViews]:
    """All views and their numbers; photographs get a Hann window before the spectra are computed."""
    return [_state(pyramid, x_1CHH, k, periodic) for k in range(pyramid.states)]


def _state(pyramid: FocusPyramid, x: Tensor, k: int, periodic: bool) -> StateViews:
    s = pyramid.factors[k]
    views = pyramid.decimated(x, k), pyramid.low(x, k), pyramid.alias(x, k)
    # L_k before decimation: F_k, except for blur "none", where L_k uses the disk and F_k is x.
    blurred = pyramid.focused(x, k) if pyramid.blurs else _with_disk(pyramid).focused(x, k)
    of_D, of_L, of_A = (energy(spectrum(view[0], periodic), s) for view in (x, blurred, x - blurred))
    total = float(of_A.total.sum())
    return StateViews(
        *views,
        pyramid.focused(x, k),
        alias_D_dB=_share_dB(of_D.alias, of_D.in_band),
        alias_L_dB=_share_dB(of_L.alias, of_L.in_band),
        A_rms=float(views[2].double().square().mean().sqrt()),
        A_in_band=float(of_A.in_band.sum()) / total if total else 0.0,
        A_alias=float(of_A.alias.sum()) / total if total else 0.0,
    )


def _with_disk(pyramid: FocusPyramid) -> FocusPyramid:
    return FocusPyramid.from_dict(pyramid.to_dict() | {"blur": "disk"})


def _share_dB(alias: Tensor, in_band: Tensor) -> float:
    return dB(float(alias.sum() / in_band.sum())) if float(in_band.sum()) > 0 else FLOOR


# ------------------------------------------------------------------------------------------------ the picture


def draw(pyramid: FocusPyramid, x_1CHH: Tensor, states: Sequence[StateViews], name: str, periodic: bool) -> Image.Image:
    """One column per state, one row per view; below each view one half of its symmetric spectrum."""
    font, bold = font_of(14), font_of(18)
    cell = SIDE + SIDE // 2 + 22
    title = f"{name}, {pyramid.image_size} px: {BLUR_TABLE[pyramid.blur].title}"
    width, height = LEFT + len(states) * (SIDE + GAP) + GAP, HEAD + 4 * (cell + GAP) + 30
    for text, face in ((title, bold), (_footnote(pyramid, periodic), font)):
        width = max(width, math.ceil(face.getlength(text)) + 2 * GAP)
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    size = pyramid.image_size
    pen.text((GAP, 6), title, INK, bold)
    for k, state in enumerate(states):
        left, s = LEFT + k * (SIDE + GAP), pyramid.factors[k]
        pen.text((left, 38), f"state {k + 1}: 1 pixel in {s}", INK, bold)
        pen.text((left, 65), f"{_radius_words(pyramid, k)}, {size // s} x {size // s} samples", FAINT, font)
        for row, (view, note) in enumerate(_column(state, s)):
            top = HEAD + row * (cell + GAP)
            canvas.paste(to_image(view[0].float(), SIDE), (left, top))
            full = row == 3  # F_k has all pixels, the others one in s
            canvas.paste(_drawn_spectrum(view[0], periodic), (left, top + SIDE + 2))
            _mark_spectrum(pen, pyramid, k, (left, top + SIDE + 2), full)
            pen.text((left, top + SIDE + SIDE // 2 + 4), note, FAINT, font)
    for row, lines in enumerate(_row_names(pyramid)):
        top = HEAD + row * (cell + GAP)
        pen.text((GAP, top + 4), lines[0], INK, bold)
        pen.multiline_text((GAP, top + 32), lines[1], FAINT, font, spacing=4)
        pen.multiline_text((GAP, top + SIDE + 8), lines[2], FAINT, font, spacing=4)
    pen.text((GAP, height - 26), _footnote(pyramid, periodic), FAINT, font)
    return canvas


def _column(state: StateViews, s: int) -> list[tuple[Tensor, str]]:
    """The four views as drawn, each with the caption of its spectrum."""
    gain = 1 / (3 * state.A_rms) if state.A_rms > ROUNDING else 0.0
    overlap = ", which overlap" if state.A_in_band + state.A_alias > 1.02 else ""
    shares = f"{100 * state.A_in_band:.0f}% blur, {100 * state.A_alias:.0f}% alias{overlap}; drawn x {gain:.1f}"
    clean = "nothing folds"
    return [
        (state.D, _beside_passband(state.alias_D_dB) if s > 1 else clean),
        (state.L, _beside_passband(state.alias_L_dB) if s > 1 else clean),
        (state.A * gain, shares if gain else "zero"),
        (state.F, "what is outside the frame folds" if s > 1 else clean),
    ]


def _beside_passband(dBs: float) -> str:
    return f"alias {abs(dBs):.1f} dB {'above' if dBs > 0 else 'below'} the passband"


def _row_names(pyramid: FocusPyramid) -> list[tuple[str, str, str]]:
    band = "its spectrum,\nto the new\nNyquist frequency"
    blur = "the disk" if not pyramid.blurs else f"the {pyramid.blur}"
    whole = "its spectrum to the\nfull Nyquist\nfrequency; frame:\nthe new one"
    return [
        ("D_k", "plain decimation:\nevery s-th pixel;\naliasing arises here", band),
        ("L_k", f"the image under\n{blur}, decimated", band),
        ("A_k", "D_k - L_k, the alias\nresidual; grey is 0", band),
        ("F_k", "focus state, all\npixels: what the\ntokenizer encodes", whole),
    ]


def _radius_words(pyramid: FocusPyramid, k: int) -> str:
    if BLUR_TABLE[pyramid.blur].shaped_by == "factor" and pyramid.radii[k]:
        return f"cut off at {0.5 / pyramid.factors[k]:g}"
    return f"radius {pyramid.radii[k]:g} px" if pyramid.radii[k] else "sharp"


def _footnote(pyramid: FocusPyramid, periodic: bool) -> str:
    window = "" if periodic else ", Hann window"
    circle = "; dashed: the disk's first zero, contrast is inverted beyond" if pyramid.blur == "disk" else ""
    return f"Spectra: log energy over {RANGE:g} dB{window}; zero frequency at the middle of the lower edge{circle}."


def _drawn_spectrum(view_CHW: Tensor, periodic: bool) -> Image.Image:
    """SIDE x SIDE / 2: the upper half of the plane of frequencies, zero frequency at the middle of the lower edge."""
    energy_HW = spectrum(view_CHW, periodic).abs().square().sum(dim=0)
    top = float(energy_HW.max())
    level = 10 * torch.log10(energy_HW.clamp_min(1e-30) / top) if top > 0 else torch.full_like(energy_HW, -RANGE)
    shade = (1 + level / RANGE).clamp(0, 1).mul(255).byte()
    half = torch.fft.fftshift(shade)[: shade.shape[0] // 2]
    return Image.fromarray(half.numpy()).convert("RGB").resize((SIDE, SIDE // 2), Image.Resampling.NEAREST)


def _mark_spectrum(pen: Any, pyramid: FocusPyramid, k: int, corner: tuple[int, int], full: bool) -> None:
    """The frame of the new Nyquist frequency on F_k's spectrum, and the circle of the disk's first zero."""
    left, top = corner
    middle, floor = left + SIDE // 2, top + SIDE // 2 - 1
    scale = SIDE if full else SIDE * pyramid.factors[k]  # drawn pixels per cycle/pixel
    reach = scale * 0.5 / pyramid.factors[k]
    if full and pyramid.factors[k] > 1:
        pen.rectangle([middle - reach, floor - reach, middle + reach, floor], outline=MARK)
    radius = 0.6098 / pyramid.radii[k] * scale if pyramid.blur == "disk" and pyramid.radii[k] > 0 else math.inf
    if radius < SIDE // 2:
        box = [middle - radius, floor - radius, middle + radius, floor + radius]
        for degrees in range(180, 360, 12):
            pen.arc(box, degrees, degrees + 6, MARK)


# ------------------------------------------------------------------------------------------------ the numbers


def table(pyramid: FocusPyramid, states: Sequence[StateViews]) -> list[str]:
    """One line per state."""
    lines = [
        f"{'':<7}{'':>9}{'1 pixel':>9}{'':>10}{'alias over passband, dB':>26}{'':>11}{'of its energy':>18}",
        f"{'state':<7}{'radius':>9}{'in':>9}{'samples':>10}{'D_k':>13}{'L_k':>13}{'rms A_k':>11}{'blur':>9}{'alias':>9}",
    ]
    for k, state in enumerate(states):
        s = pyramid.factors[k]
        dBs = [f"{value:.1f}" if s > 1 else "-" for value in (state.alias_D_dB, state.alias_L_dB)]
        shares = [f"{100 * share:.0f}%" if s > 1 else "-" for share in (state.A_in_band, state.A_alias)]
        lines.append(
            f"{k + 1:<7}{pyramid.radii[k]:>6g} px{s:>9}{pyramid.image_size // s:>10}{dBs[0]:>13}{dBs[1]:>13}"
            f"{state.A_rms:>11.4f}{shares[0]:>9}{shares[1]:>9}"
        )
    return lines


def numbers(pyramid: FocusPyramid, name: str, states: Sequence[StateViews]) -> dict[str, Any]:
    """The numbers for --json."""
    keys = ("alias_D_dB", "alias_L_dB", "A_rms", "A_in_band", "A_alias")
    return {
        "image": name,
        "pyramid": pyramid.to_dict(),
        "states": [
            {"state": k + 1, "radius": pyramid.radii[k], "factor": pyramid.factors[k]}
            | {key: getattr(state, key) for key in keys}
            for k, state in enumerate(states)
        ],
    }
