"""The report of the alias benchmark: text tables and sentences. Every sentence is generated from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from refocus_ext.evidence.aliasing.filters import FilterFlaws, Reading, SetReport, State, WienerCurve
from refocus_ext.evidence.aliasing.sample_spectrum import SampleReport
from refocus_ext.evidence.aliasing.shifts import ShiftReading
from refocus_ext.optics.spectrum import dB

DEFINITIONS = """\
alias      alias energy of the filtered, decimated view over that of plain decimation (`none`), dB; lower is better
kept       passband energy of the view over the image's: below the new Nyquist 0.5 / s in both axes, dB; 0 is best
a/k        alias energy over passband energy within the view itself, dB: the visible aliasing relative to the remaining signal
in-band    share of the energy of A_k = D_k - L_k that is blur of the passband; nearly all of the rest is alias
worst      the single sinusoid at or above the new Nyquist that passes best, dB, and its frequencies (cycles/pixel)
inner      the same among those that fold into the inner half of the band, where they look like coarse moire
inversion  most negative transfer within the passband, and anywhere: dark and bright are exchanged there"""
IN_USE = (
    "Area pooling (the box average) and bicubic with antialiasing are the usual ways to make small images; bicubic "
    "without antialiasing (PyTorch's default) and plain decimation are the targets of the paper's argument. VAR itself never "
    "decimates pixels: it area-pools latent residuals."
)
ONE_SEED = "One training run each: two seeds of the same recipe could differ by as much."


def flaw_table(states: Sequence[State], flaws: Sequence[FilterFlaws]) -> list[str]:
    """Single sinusoids: independent of any image."""
    lines: list[str] = []
    for state in states:
        lines += [
            *([""] if lines else []),
            f"state {state.number}: 1 pixel in {state.s}, radius {state.radius:g} px, new Nyquist {0.5 / state.s:g} cycles/pixel",
            f"{'filter':<20}{'worst':>8}{'at (fy, fx)':>17}{'inner':>9}{'first zero':>13}"
            f"{'inversion: passband':>22}{'anywhere':>10}",
        ]
        for row in flaws:
            if row.state == state.number:
                lines.append(_flaw_line(row))
    return lines


def _flaw_line(row: FilterFlaws) -> str:
    q = row.flaws
    at = f"({q.worst_at[0]:.3f}, {q.worst_at[1]:.3f})"
    zero = f"{q.first_zero:.4f}" if q.first_zero is not None else "-"
    inverted = [f"{value:.3f}" if value else "-" for value in (q.inverted_in_band, q.inverted_anywhere)]
    worst, inner = (dB(gain * gain) + 0.0 for gain in (q.worst_gain, q.inner_gain))
    return f"{row.filter:<20}{worst:>8.1f}{at:>17}{inner:>9.1f}{zero:>13}{inverted[0]:>22}{inverted[1]:>10}"


def energy_table(states: Sequence[State], report: SetReport) -> list[str]:
    """One line per filter, one group of columns per state."""
    heads = [f"state {state.number}: 1 px in {state.s}, rho {state.radius:g}" for state in states]
    lines = [
        " " * 20 + "".join(f"   {head:<29}" for head in heads).rstrip(),
        f"{'filter':<20}" + "".join(f"{'alias':>9}{'kept':>7}{'a/k':>8}{'in-band':>8}" for _ in states),
    ]
    for filter in states[0].filters:
        cells = [_energy_cells(report.at(state.number, filter.name)) for state in states]
        lines.append(f"{filter.name:<20}" + "".join(cells))
    return lines


def _energy_cells(r: Reading) -> str:
    share = "-" if r.filter == "none" else f"{100 * r.residual_in_band:.0f}%"
    return f"{r.alias_dB:>9.1f}{r.passband_dB:>7.1f}{r.alias_in_view_dB:>8.1f}{share:>8}"


def set_title(report: SetReport) -> str:
    """The set of images, and the treatment of borders."""
    if report.windowed:
        return f"{report.name}: {report.images} images, Hann window (they do not tile), mean removed"
    return f"{report.name}: tiles seamlessly, no window needed, mean removed"


# ------------------------------------------------------------------------------------------------ in words


def in_words(states: Sequence[State], report: SetReport) -> list[str]:
    """The disk against the Gaussian, the box and bicubic, state by state.

    Alias energies are compared as averages over the s^2 decimation phases: the position of pixel (0, 0) favours no filter.
    """
    lines = ["Averaged over the decimation phases (the table has the phase of pixel (0, 0)):"]
    for state in states:
        disk, gaussian, box, bicubic = (
            report.at(state.number, name) for name in ("disk", "gaussian", "box", "bicubic, antialias")
        )
        lines += [
            f"State {state.number}, 1 pixel in {state.s}: the disk {versus(disk, box)} a box average of {state.s} x {state.s} "
            f"pixels and {against(disk, box)}.",
            f"  The Gaussian of equal variance {versus(gaussian, disk)} the disk and {against(gaussian, disk)}.",
            f"  Bicubic with antialiasing {versus(bicubic, disk)} the disk and {against(bicubic, disk)}.",
            f"  Of A_{state.number}'s energy under the disk {100 * disk.residual_in_band:.0f}% is in-band blur, "
            f"{100 * disk.residual_alias:.0f}% is alias.",
        ]
    return lines


def gaussian_in_words(states: Sequence[State], sets: Sequence[SetReport]) -> list[str]:
    """The cases in which the Gaussian is better than the disk, over all sets and states."""
    cases: dict[bool, list[str]] = {True: [], False: []}
    for report in sets:
        for state in states:
            gaussian, disk = (report.at(state.number, name) for name in ("gaussian", "disk"))
            both = gaussian.alias_any_phase_dB < disk.alias_any_phase_dB and gaussian.passband_dB >= disk.passband_dB
            case = f"{report.name}, state {state.number}: it {versus(gaussian, disk)} the disk and {against(gaussian, disk)}"
            cases[both].append(case)
    total = len(cases[True]) + len(cases[False])
    lines = [
        f"In {len(cases[True])} of {total} cases (each chart or set, each state) the Gaussian of equal variance aliases less than "
        "the disk and keeps no less of the passband."
    ]
    if cases[False]:
        return [*lines, f"The exceptions: {'; '.join(cases[False])}."]
    return [*lines, "By these measures it is the better filter everywhere; the paper prefers the disk for its FID."]


def versus(a: Reading, b: Reading) -> str:
    """'aliases 14.0 dB less than'."""
    less = b.alias_any_phase_dB - a.alias_any_phase_dB
    return f"aliases {abs(less):.1f} dB {'less' if less >= 0 else 'more'} than"


def against(a: Reading, b: Reading) -> str:
    """'keeps 1.9 dB more of the passband: better on both counts'."""
    less, more = b.alias_any_phase_dB - a.alias_any_phase_dB, a.passband_dB - b.passband_dB
    verdict = ": better on both counts" if less > 0 and more > 0 else ""
    verdict = ": worse on both counts" if less < 0 and more < 0 else verdict
    return f"keeps {abs(more):.1f} dB {'more' if more >= 0 else 'less'} of the passband{verdict}"


def inversion_in_words(states: Sequence[State], flaws: Sequence[FilterFlaws]) -> list[str]:
    """Where the disk inverts contrast, and the filters that never do."""
    lines = []
    for state in states:
        q = next(row.flaws for row in flaws if (row.state, row.filter) == (state.number, "disk"))
        if q.first_zero is None:
            continue
        where = "inside" if q.first_zero < 0.5 / state.s else "beyond"
        lines.append(
            f"State {state.number}: the disk's first zero is at {q.first_zero:.4f} cycles/pixel, {where} the passband "
            f"({0.5 / state.s:g} along the axes); beyond it contrast is inverted, down to {q.inverted_anywhere:.3f}"
            + (f" ({q.inverted_in_band:.3f} within the passband)." if q.inverted_in_band else ".")
        )
    calm = [
        name for name in ("gaussian", "sinc") if not any(r.flaws.inverted_anywhere for r in flaws if r.filter == name)
    ]
    return [*lines, f"Never inverted: {', '.join(calm)}."] if calm else lines


def wiener_lines(states: Sequence[State], curves: Sequence[WienerCurve]) -> list[str]:
    """The gain of eq. 12 at quarters of each new band."""
    shares = (0.25, 0.5, 0.75, 0.95)
    lines = [f"{'at this share of the new Nyquist':<36}" + "".join(f"{share:>8.2f}" for share in shares)]
    for state, curve in zip(states, curves, strict=True):
        for name, gains in (("D", curve.decimated), ("the disk's A", curve.residual)):
            near = [_nearest(curve.frequency, share * 0.5 / state.s) for share in shares]
            lines.append(f"{f'alpha of {name}_{state.number}':<36}" + "".join(f"{gains[i]:>8.2f}" for i in near))
    return lines


def _nearest(values: Sequence[float], target: float) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - target))


# ------------------------------------------------------------------------------------------------ tokenizers and samples


def shift_table(readings: Sequence[ShiftReading]) -> list[str]:
    """Rows are states, columns shifts; PSNR, its gain over an unmoved reconstruction, tokens changed."""
    shifts = sorted({r.shift for r in readings})
    lines = [f"{'shift, pixels right and down':<34}" + "".join(f"{shift:>8g}" for shift in shifts)]
    for state in sorted({r.state for r in readings}):
        row = {r.shift: r for r in readings if r.state == state}
        lines += [
            f"{f'state {state}: PSNR, dB':<34}" + "".join(f"{_number(row[t].psnr):>8}" for t in shifts),
            f"{'  PSNR without moving, dB':<34}" + "".join(f"{_number(row[t].unmoved):>8}" for t in shifts),
            f"{'  gain of moving, dB':<34}" + "".join(f"{_number(row[t].gain_dB):>8}" for t in shifts),
            f"{'  its tokens that changed':<34}" + "".join(f"{100 * row[t].tokens_changed:>7.0f}%" for t in shifts),
        ]
    return lines


def _number(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"


def shifts_in_words(runs: dict[str, list[ShiftReading]]) -> list[str]:
    """Each further run against the first, state by state, as means over the shifts."""
    (first, theirs), *others = runs.items()
    lines = []
    for name, ours in others:
        for state in sorted({r.state for r in ours} & {r.state for r in theirs}):
            a, b = (_mean_gain(readings, state) for readings in (theirs, ours))
            if a is None or b is None:
                continue
            lines.append(
                f"State {state}, means over the shifts: PSNR {a[0]:.1f} dB for {first} and {b[0]:.1f} dB for {name}; gain over an "
                f"unmoved reconstruction {a[1]:+.1f} and {b[1]:+.1f} dB: {_who_follows(first, a[1], name, b[1])}."
            )
    return lines


def _who_follows(first: str, a: float, name: str, b: float) -> str:
    if abs(a - b) < 0.1:
        return "no notable difference"
    better, worse = (first, name) if a > b else (name, first)
    return f"{better} follows the shift better than {worse} by {abs(a - b):.1f} dB"


def _mean_gain(readings: Sequence[ShiftReading], state: int) -> tuple[float, float] | None:
    pairs = [(r.psnr, r.gain_dB) for r in readings if r.state == state]
    numbers = [(psnr, gain) for psnr, gain in pairs if psnr is not None and gain is not None]
    if not numbers:
        return None
    return sum(psnr for psnr, _ in numbers) / len(numbers), sum(gain for _, gain in numbers) / len(numbers)


def sample_table(report: SampleReport) -> list[str]:
    """Energy of the samples against the data per octave."""
    lines = [f"{'cycles/pixel':<24}{'samples against data, dB':>26}"]
    lines += [f"{f'{o.low:.4f} to {o.high:.4f}':<24}{o.difference_dB:>+26.2f}" for o in report.octaves]
    finest = report.octaves[-1].difference_dB
    guess = ": noise, jaggies or grids" if finest > 1 else ": detail is missing" if finest < -1 else ""
    more = "more" if finest >= 0 else "less"
    return [
        *lines,
        "",
        f"In the finest octave the samples have {abs(finest):.1f} dB {more} energy than the data{guess}.",
    ]
