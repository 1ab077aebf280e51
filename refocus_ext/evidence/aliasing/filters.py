"""Part (a) of the alias benchmark: the aliasing and the loss of detail of each prefilter, on charts and photographs.

Energies are mean squares of decimated views, computed exactly in the Fourier domain (`spectrum.energy`) and pooled over
images and colour channels; filters are applied in the Fourier domain, with periodic borders. Decibels are 10 log10 of:
- alias: alias energy of the filtered view over that of plain decimation, at the decimation phase of pixel (0, 0);
- passband: energy below the new Nyquist 0.5 / s in both axes, of the filtered view over that of the image;
- alias in view: alias energy over passband energy, both of the same filtered view.
For A_k = D_k - L_k (both at the filter's sample positions) the shares of in-band blur and of alias are given; the rest is
their cross term.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus_ext.optics.prefilter import Flaws, Prefilter, flaws, prefilters
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.optics.spectrum import FLOOR, WienerEstimate, dB, energy, spectrum


@dataclass(frozen=True)
class State:
    """A decimated focus state (counted from 1) with its filters."""

    number: int
    s: int
    radius: float  # pixels
    filters: list[Prefilter]


def decimated_states(pyramid: FocusPyramid) -> list[State]:
    """The states 1 .. K-1; the last is neither blurred nor decimated."""
    both = zip(pyramid.radii[:-1], pyramid.factors[:-1], strict=True)
    return [State(k, s, rho, prefilters(s, rho)) for k, (rho, s) in enumerate(both, start=1)]


@dataclass(frozen=True)
class FilterFlaws:
    """The flaws of a filter at one state."""

    state: int
    filter: str
    flaws: Flaws


def flaws_of(states: Sequence[State]) -> list[FilterFlaws]:
    return [FilterFlaws(state.number, filter.name, flaws(filter)) for state in states for filter in state.filters]


@dataclass(frozen=True)
class Reading:
    """One filter at one state on one set of images; decibels and shares as defined at the top of this file."""

    state: int
    filter: str
    alias_dB: float
    alias_any_phase_dB: float
    passband_dB: float
    alias_in_view_dB: float
    residual_in_band: float
    residual_alias: float
    alias_dB_p10: float  # over single images
    alias_dB_p90: float


@dataclass(frozen=True)
class SetReport:
    """All readings of a set of images. `windowed`: they do not tile, so a Hann window was applied first."""

    name: str
    images: int
    windowed: bool
    readings: list[Reading]

    def at(self, state: int, filter: str) -> Reading:
        return next(r for r in self.readings if (r.state, r.filter) == (state, filter))


# Columns of a ledger row.
ALIAS, ANY_PHASE, PASSBAND, RESIDUAL_IN_BAND, RESIDUAL_ALIAS, RESIDUAL = range(6)


class Ledger:
    """Running energies of a set of images: `update(x)` for each, then `report(name)`."""

    def __init__(self, states: Sequence[State], size: int, periodic: bool) -> None:
        self.states, self.periodic = states, periodic
        self.grids = [[filter.on_grid(size, size) for filter in state.filters] for state in states]
        self.disk = [[filter.name for filter in state.filters].index("disk") for state in states]
        self.rows_NSFQ: list[Tensor] = []
        self.wiener = [
            (WienerEstimate(state.s), WienerEstimate(state.s)) for state in states
        ]  # of D_k, of the disk's A_k

    def update(self, x_CHH: Tensor) -> None:
        """Adds one image."""
        X = spectrum(x_CHH, self.periodic)
        self.rows_NSFQ.append(torch.stack([self._state(X, k) for k in range(len(self.states))]))

    def _state(self, X: Tensor, k: int) -> Tensor:
        s, grids = self.states[k].s, self.grids[k]
        self.wiener[k][0].update(X)
        self.wiener[k][1].update(X * (1 - grids[self.disk[k]][0]))
        return torch.stack([_energies(X, otf, phase, s) for otf, phase in grids])

    def report(self, name: str) -> SetReport:
        """The pooled readings."""
        rows_NSFQ = torch.stack(self.rows_NSFQ)
        readings = []
        for k, state in enumerate(self.states):
            plain = next(i for i, filter in enumerate(state.filters) if filter.name == "none")
            for i, filter in enumerate(state.filters):
                each_NQ, plain_NQ = rows_NSFQ[:, k, i], rows_NSFQ[:, k, plain]
                readings.append(_reading(state.number, filter.name, each_NQ, plain_NQ))
        return SetReport(name, len(rows_NSFQ), not self.periodic, readings)


def _energies(X: Tensor, otf: Tensor, phase: Tensor, s: int) -> Tensor:
    shifted = X * phase  # the image at the filter's sample positions
    view, residual = energy(shifted * otf, s), energy(shifted * (1 - otf), s)
    columns = (view.alias, view.alias_any_phase, view.in_band, residual.in_band, residual.alias, residual.total)
    return torch.stack([column.sum() for column in columns])


def _reading(state: int, name: str, each_NQ: Tensor, plain_NQ: Tensor) -> Reading:
    q, plain = each_NQ.sum(0).tolist(), plain_NQ.sum(0).tolist()
    singly = [dB(a / b) for a, b in zip(each_NQ[:, ALIAS].tolist(), plain_NQ[:, ALIAS].tolist(), strict=True) if b > 0]
    spread = torch.tensor(singly or [FLOOR], dtype=torch.float64)
    return Reading(
        state,
        name,
        alias_dB=_ratio_dB(q[ALIAS], plain[ALIAS]),
        alias_any_phase_dB=_ratio_dB(q[ANY_PHASE], plain[ANY_PHASE]),
        passband_dB=_ratio_dB(q[PASSBAND], plain[PASSBAND]),
        alias_in_view_dB=_ratio_dB(q[ALIAS], q[PASSBAND]),
        residual_in_band=q[RESIDUAL_IN_BAND] / q[RESIDUAL] if q[RESIDUAL] > 0 else 0.0,
        residual_alias=q[RESIDUAL_ALIAS] / q[RESIDUAL] if q[RESIDUAL] > 0 else 0.0,
        alias_dB_p10=float(spread.quantile(0.1)),
        alias_dB_p90=float(spread.quantile(0.9)),
    )


def _ratio_dB(part: float, whole: float) -> float:
    return dB(part / whole) if whole > 0 else FLOOR


def measure(states: Sequence[State], images: Iterable[Tensor], size: int, periodic: bool) -> Ledger:
    """The ledger of images (3, size, size)."""
    ledger = Ledger(states, size, periodic)
    for image in images:
        ledger.update(image)
    return ledger


@dataclass(frozen=True)
class WienerCurve:
    """Eq. 12 over frequency (cycles per pixel of the image) for one state: the share of signal in D_k, and in A_k of the disk."""

    state: int
    frequency: list[float]
    decimated: list[float]
    residual: list[float]


def wiener_curves(ledger: Ledger) -> list[WienerCurve]:
    """Computed from the images that the ledger has seen."""
    curves = []
    for state, (of_D, of_A) in zip(ledger.states, ledger.wiener, strict=True):
        f, decimated = of_D.gain()
        curves.append(WienerCurve(state.number, f.tolist(), decimated.tolist(), of_A.gain()[1].tolist()))
    return curves
