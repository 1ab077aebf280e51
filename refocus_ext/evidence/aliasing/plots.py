"""Pictures of the alias benchmark: transfer functions, decimated charts, Wiener gains, shift consistency, sample spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from refocus_ext.evidence.aliasing.filters import SetReport, State, WienerCurve
from refocus_ext.evidence.aliasing.sample_spectrum import SampleReport
from refocus_ext.evidence.aliasing.shifts import ShiftReading
from refocus_ext.images.picture import grid
from refocus_ext.optics.names import BLUR_TABLE, BLURS
from refocus_ext.optics.spectrum import fold
from refocus_ext.storage.atomic import written_beside

RESIZES = {"bicubic": "#8c564b", "box": "#ff7f0e", "bicubic, antialias": "#9467bd"}  # the filters that are not blurs
DRAWN = ("none", *RESIZES, *(name for name in reversed(BLURS) if BLUR_TABLE[name].shaped_by != "nothing"))
COLOURS = RESIZES | {name: blur.colour for name, blur in BLUR_TABLE.items() if name in DRAWN}


def _figure(panels: int, height: float = 3.6, rows: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure with panels side by side, without global state or display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, height * rows), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, panels, squeeze=False)


def _legend_below(figure: Any, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(DRAWN), fontsize=9)


def save_figure(path: Path, figure: Any) -> None:
    """Writes the PNG completely or not at all, without a date."""
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})


def draw_transfer(path: Path, states: Sequence[State]) -> None:
    """|OTF| along an axis for every state and filter; dashed where contrast is inverted."""
    figure, panels = _figure(len(states))
    f = torch.linspace(0, 0.5, 1001, dtype=torch.float64)
    for axes, state in zip(panels[0], states, strict=True):
        for filter in state.filters:
            if filter.name not in DRAWN or filter.name == "none":
                continue
            H = filter.otf(torch.zeros(1, dtype=torch.float64), f)[0]
            level = 20 * torch.log10(H.abs().clamp_min(1e-6))
            for positive, style in ((H > 0, "-"), (H <= 0, ":")):
                shown = torch.where(positive, level, torch.nan)
                label = filter.name if style == "-" else None
                axes.plot(f, shown, style, color=COLOURS[filter.name], label=label, linewidth=1.3)
        axes.axvline(0.5 / state.s, color="black", linewidth=0.8, linestyle="--")
        axes.text(0.5 / state.s, 3, " new Nyquist", fontsize=8)
        axes.set(ylim=(-80, 8), xlim=(0, 0.5), xlabel="cycles/pixel", ylabel="transfer, dB")
        axes.set_title(f"state {state.number}: 1 pixel in {state.s}, rho {state.radius:g} px", fontsize=10)
    _legend_below(figure, panels[0][0])
    figure.suptitle("Transfer of each filter along an axis (dotted: contrast inverted)", fontsize=11)
    save_figure(path, figure)


def draw_tradeoff(path: Path, states: Sequence[State], sets: Sequence[SetReport]) -> None:
    """Alias energy against passband energy kept, one point per filter; one row of panels per set of images."""
    figure, panels = _figure(len(states), height=3.4, rows=len(sets))
    for row, report in zip(panels, sets, strict=True):
        for axes, state in zip(row, states, strict=True):
            for name in DRAWN:
                r = report.at(state.number, name)
                axes.plot(r.passband_dB, r.alias_dB, "o", color=COLOURS[name], label=name)
            axes.grid(alpha=0.3)
            axes.set_title(f"{report.name}, state {state.number}: 1 pixel in {state.s}", fontsize=10)
            axes.set(xlabel="passband kept, dB", ylabel="alias relative to no filter, dB")
    _legend_below(figure, panels[0][0])
    figure.suptitle("Lower: less alias. Right: more detail.", fontsize=11)
    save_figure(path, figure)


def views(states: Sequence[State], charts: Sequence[tuple[str, Tensor]], side: int = 128) -> Image.Image:
    """Charts (1,3,H,H), decimated after each filter, enlarged without smoothing: a row per chart and state."""
    rows, names = [], []
    for name, x_1CHH in charts:
        for state in states:
            filters = {filter.name: filter for filter in state.filters}
            rows.append([_decimated(x_1CHH[0], filters[drawn], state.s) for drawn in DRAWN])
            names.append(f"{name}, 1 in {state.s}")
    return grid(rows, DRAWN, names=names, title="Decimated after each filter", side=side)


def _decimated(x_CHH: Tensor, filter: Any, s: int) -> Tensor:
    otf, phase = filter.on_grid(*x_CHH.shape[-2:])
    return torch.fft.ifft2(fold(torch.fft.fft2(x_CHH.double()) * otf * phase, s)).real


def draw_wiener(path: Path, states: Sequence[State], curves: Sequence[WienerCurve]) -> None:
    """Eq. 12 over frequency."""
    figure, panels = _figure(len(states))
    for axes, state, curve in zip(panels[0], states, curves, strict=True):
        axes.plot(curve.frequency, curve.decimated, color="#1f77b4", label="of D_k (plain decimation)")
        axes.plot(curve.frequency, curve.residual, color="#d62728", label="of A_k (the disk's residual)")
        axes.set(xlim=(0, 0.5 / state.s), ylim=(0, 1.02), xlabel="cycles/pixel", ylabel="alpha, eq. 12")
        axes.set_title(f"state {state.number}: 1 pixel in {state.s}", fontsize=10)
        axes.grid(alpha=0.3)
    _legend_below(figure, panels[0][0])
    figure.suptitle("Wiener gain: the share of the energy that is signal, not alias", fontsize=11)
    save_figure(path, figure)


def draw_shifts(path: Path, runs: dict[str, list[ShiftReading]]) -> None:
    """Gain of moving over the shift, a panel per state, a line per run."""
    states = sorted({r.state for readings in runs.values() for r in readings})
    figure, panels = _figure(len(states), rows=2)
    for row, (attribute, label) in zip(
        panels, (("psnr", "PSNR, dB"), ("gain_dB", "gain over unmoved, dB")), strict=True
    ):
        for axes, state in zip(row, states, strict=True):
            for name, readings in runs.items():
                mine = [r for r in readings if r.state == state]
                values = [getattr(r, attribute) for r in mine]
                shown = [math.nan if value is None else value for value in values]
                axes.plot([r.shift for r in mine], shown, "o-", label=name, markersize=3)
            shifts = sorted({r.shift for r in next(iter(runs.values()))})
            axes.set_xscale("log", base=2)
            axes.set_xticks(shifts, [f"{shift:g}" for shift in shifts])
            axes.set(xlabel="shift, pixels", ylabel=label)
            axes.set_title(f"prefix of state {state}", fontsize=10)
            axes.grid(alpha=0.3)
            if attribute == "gain_dB":
                axes.axhline(0, color="black", linewidth=0.8)
    _legend_below(figure, panels[0][0])
    figure.suptitle("Reconstruction of a shifted image against the shifted reconstruction", fontsize=11)
    save_figure(path, figure)


def draw_samples(path: Path, report: SampleReport) -> None:
    """Both spectra, and their ratio."""
    figure, panels = _figure(2)
    left, right = panels[0]
    ours, theirs = torch.tensor(report.power_samples), torch.tensor(report.power_reference)
    left.semilogy(report.frequency, theirs, color="black", label=f"data ({report.reference})")
    left.semilogy(report.frequency, ours, color="#d62728", label=f"samples ({report.samples})")
    left.set(xlabel="cycles/pixel", ylabel="power per frequency")
    left.legend(fontsize=8)
    ratio = 10 * torch.log10(ours.clamp_min(1e-30) / theirs.clamp_min(1e-30))
    right.plot(report.frequency, ratio, color="#d62728")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="cycles/pixel", ylabel="samples against data, dB")
    octaves = [octave.low for octave in report.octaves] + [report.octaves[-1].high]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(octaves, [f"1/{round(1 / f)}" for f in octaves])
        axes.grid(alpha=0.3)
    save_figure(path, figure)
