"""`bash run.sh aliasing`: how much the filters alias and blur, how tokenizers respond to shifts, how sharp samples are.

Everything except the tokenizers' passes is float64 on the CPU, and nothing is random: two runs on one machine write the
same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refocus_ext.engine.devices import pick_device
from refocus_ext.errors import UsageError, named, offering
from refocus_ext.evidence.aliasing import plots, report
from refocus_ext.evidence.aliasing.filters import (
    Ledger,
    SetReport,
    State,
    WienerCurve,
    decimated_states,
    flaws_of,
    measure,
    wiener_curves,
)
from refocus_ext.evidence.aliasing.options import AliasingOptions
from refocus_ext.evidence.aliasing.page import Page
from refocus_ext.evidence.aliasing.sample_spectrum import ImageSet, compare, open_images
from refocus_ext.evidence.aliasing.shifts import BATCH, MARGIN, Subject, measure_shifts, open_subject
from refocus_ext.images.checks import check_images
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import spread
from refocus_ext.images.photographs import find_photographs
from refocus_ext.images.picture import save_png
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import demo_photographs
from refocus_ext.optics.charts import chart
from refocus_ext.optics.names import CHARTS
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options import shared
from refocus_ext.storage.results import results_file, results_folder, write_numbers
from refocus_ext.tokens.bare_tokenizer import ASSUMED_BY, Assumed, WrongAssumption, run_of

SHIFTED_IMAGES = 32
VIEWED = ("zone-plate", "text")


def main(options: AliasingOptions) -> int:
    """Runs the command; returns its exit code."""
    pyramid = _pyramid(options)
    photographs = _photographs(options, options.images)
    subjects = _subjects(options)
    sets = _sample_sets(options)
    with named("--out"):
        out = results_folder(options.out)
    with named("--json"):
        json = results_file(options.json) if options.json else None
    out.mkdir(parents=True, exist_ok=True)
    page = Page(out)
    numbers: dict[str, Any] = {"pyramid": pyramid.to_dict()}
    if photographs or not (subjects or sets):
        numbers |= optics(page, pyramid, photographs)
    if subjects:
        numbers["tokenizers"] = tokenizers(page, subjects, options)
    if sets:
        numbers["samples"] = samples(page, *sets)
    page.close()
    if json:
        with named("--json"):
            write_numbers(json, numbers)
    return 0


# ------------------------------------------------------------------------------------------------ before any work


def _pyramid(options: AliasingOptions) -> FocusPyramid:
    if options.focus_states < 2:
        raise UsageError(f"--focus-states {options.focus_states} decimates nothing; use at least 2.")
    try:
        pyramid = FocusPyramid(image_size=options.image_size, states=options.focus_states, rho_max=options.rho_max)
        chart(CHARTS[0], options.image_size)
    except ValueError as error:
        raise UsageError(shared.with_options(str(error))) from None
    return pyramid


def _photographs(options: AliasingOptions, at_most: int | None) -> ImageSource | None:
    with named("--data"):
        return find_photographs(options.data, at_most) if options.data else None


def _subjects(options: AliasingOptions) -> list[Subject]:
    bare = [word for word in options.tokenizer if run_of(Path(word)) is None]
    if (typed := options.given("patch_nums", "blur")) and not bare:
        flag = "--" + typed[0].replace("_", "-")
        raise UsageError(f"{flag} is for a bare file of VQVAE weights, and --tokenizer names none; omit {flag}.")
    if not options.tokenizer:
        return []
    from patches import load_upstream

    print(load_upstream().describe())
    device = pick_device(options.device)
    with named("--tokenizer"), offering(ASSUMED_BY, WrongAssumption):
        words = dict.fromkeys(options.tokenizer)
        return [open_subject(word, device, _assumed(options) if word in bare else None) for word in words]


def _assumed(options: AliasingOptions) -> Assumed:
    """Of bare files: the pyramid is that of the optics if they are to be blurred."""
    if options.blur in ("", "none", "sharp"):
        return Assumed(options.patch_nums, options.blur or None)
    return Assumed(options.patch_nums, options.blur, options.focus_states, options.rho_max)


def _sample_sets(options: AliasingOptions) -> tuple[ImageSet, ImageSet] | None:
    if not (options.samples or options.reference):
        return None
    if not (options.samples and options.reference):
        given, missing = ("samples", "reference") if options.samples else ("reference", "samples")
        raise UsageError(f"--{given} needs --{missing}; give both or neither.")
    with named("--samples"):
        ours = open_images(options.samples, options.images)
    with named("--reference"):
        return ours, open_images(options.reference, options.images, ours.size)


# ------------------------------------------------------------------------------------------------ (a) optics


def optics(page: Page, pyramid: FocusPyramid, photographs: ImageSource | None) -> dict[str, Any]:
    """The filters on single sinusoids, on the charts, and on photographs if --data is given."""
    states = decimated_states(pyramid)
    flaws = flaws_of(states)
    page.section("What the columns mean")
    page.table(report.DEFINITIONS.splitlines())
    page.section("Single sinusoids: the filters, independent of the image")
    page.table(report.flaw_table(states, flaws))
    page.words(report.inversion_in_words(states, flaws))
    plots.draw_transfer(page.picture("transfer.png", "transfer functions"), states)
    page.section("Energies: charts and photographs")
    page.words([report.IN_USE])
    sets, curves = _measured_sets(page, states, pyramid.image_size, photographs)
    shown = [s for s in sets if s.name == CHARTS[0] or s.windowed]
    plots.draw_tradeoff(page.picture("tradeoff.png", "alias against passband"), states, shown)
    examples = [(name, chart(name, pyramid.image_size)) for name in VIEWED]
    save_png(page.picture("views.png", "decimated charts"), plots.views(states, examples))
    if curves:
        page.section("Wiener gain (eq. 12), estimated from the photographs")
        page.table(report.wiener_lines(states, curves))
        plots.draw_wiener(page.picture("wiener.png", "Wiener gain"), states, curves)
    else:
        print("Wiener gain (eq. 12): not estimated; it needs photographs: give --data DIR.\n")
    return {
        "states": [{"state": s.number, "factor": s.s, "radius": s.radius} for s in states],
        "filters": [{"state": f.state, "filter": f.filter} | dataclasses.asdict(f.flaws) for f in flaws],
        "sets": {s.name: dataclasses.asdict(s) for s in sets},
        "wiener": [dataclasses.asdict(curve) for curve in curves],
    }


def _measured_sets(
    page: Page, states: list[State], size: int, photographs: ImageSource | None
) -> tuple[list[SetReport], list[WienerCurve]]:
    sets, curves = [], list[WienerCurve]()
    for name in CHARTS:
        sets.append(measure(states, chart(name, size, torch.float64), size, periodic=True).report(name))
    if photographs:
        ledger = _photograph_ledger(states, size, photographs)
        sets.append(ledger.report("photographs"))
        curves = wiener_curves(ledger)
    for reading in sets:
        # The terminal shows the zone plate and the photographs; the other charts are in report.md.
        quiet = reading.name in CHARTS[1:]
        page.table(report.energy_table(states, reading), report.set_title(reading), quiet)
        page.words(report.in_words(states, reading), quiet)
    page.words(report.gaussian_in_words(states, sets))
    print(f"The tables of {', '.join(CHARTS[1:])} are in {page.out / 'report.md'}.\n")
    return sets, curves


def _photograph_ledger(states: list[State], size: int, photographs: ImageSource) -> Ledger:
    note = check_images(photographs, size, "upsample")
    if note:
        print(f"note: {note}; such images have little high-frequency content that could alias\n")
    crops = Crops(photographs, size, random=False)
    return measure(states, (crops[i].image for i in range(len(crops))), size, periodic=False)


# ------------------------------------------------------------------------------------------------ (b) tokenizers


def tokenizers(page: Page, subjects: list[Subject], options: AliasingOptions) -> dict[str, Any]:
    """Every tokenizer on the same shifted photographs."""
    page.section("Tokenizers: the reconstruction of a shifted image against the shifted reconstruction")
    at_most = options.images or SHIFTED_IMAGES
    images = _photographs(options, at_most) or demo_photographs()
    source = "photographs" if options.data else "demo photographs (which a demo run was trained on)"
    chosen = spread(range(len(images)), at_most)
    runs = {}
    for subject in subjects:
        device = pick_device(options.device)
        runs[subject.name] = measure_shifts(subject, _canvases(images, chosen, subject.size, device))
        title = f"{subject.name}: {len(chosen)} {source}, {subject.size} px, without borders of {subject.border} px"
        page.table(report.shift_table(runs[subject.name]), title)
    if len(runs) > 1:
        page.words([*report.shifts_in_words(runs), report.ONE_SEED])
    plots.draw_shifts(page.picture("shifts.png", "shift consistency"), runs)
    return {name: [dataclasses.asdict(r) for r in readings] for name, readings in runs.items()}


def _canvases(images: ImageSource, chosen: list[int], size: int, device: torch.device) -> Iterator[Tensor]:
    """Batches of centre crops with MARGIN more pixels on each side, at the scale of VAR's own crops."""
    canvas = size + 2 * MARGIN
    check_images(images, canvas, "upsample")
    crops = Crops(images, canvas, scale=max(1.0, 1.125 * size / canvas), random=False)
    for begin in range(0, len(chosen), BATCH):
        yield torch.stack([crops[i].image for i in chosen[begin : begin + BATCH]]).to(device)


# ------------------------------------------------------------------------------------------------ (c) samples


def samples(page: Page, ours: ImageSet, reference: ImageSet) -> dict[str, Any]:
    """Energy spectra of generated images against data."""
    page.section("Samples: their energy spectrum against the data's")
    result = compare(ours, reference)
    title = f"{ours.name} ({result.samples} images) against {reference.name} ({result.reference}), {result.size} px"
    page.table(report.sample_table(result), title)
    plots.draw_samples(page.picture("samples.png", "energy spectra"), result)
    return dataclasses.asdict(result)
