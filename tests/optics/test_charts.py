"""The charts: in range, seamless, and with the frequencies they are meant to have."""

from __future__ import annotations

import math

import pytest
import torch

from refocus_ext.optics.charts import chart
from refocus_ext.optics.names import CHARTS
from refocus_ext.optics.spectrum import spectrum


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("size", [64, 256])
def test_a_chart_is_an_image_and_always_the_same(name: str, size: int) -> None:
    x = chart(name, size)
    assert x.shape == (1, 3, size, size) and x.dtype == torch.float32
    assert -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1
    assert torch.equal(x, chart(name, size))


@pytest.mark.parametrize("name", ["zone-plate", "gratings", "edges", "text"])
def test_drawn_charts_are_grey(name: str) -> None:
    assert torch.equal(chart(name)[:, :1].expand(1, 3, 256, 256), chart(name))


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_tiles_without_a_seam(name: str) -> None:
    x = chart(name, 256, torch.float64)[0]
    for axis in (1, 2):
        steps = (x.roll(-1, axis) - x).abs()
        seam = steps.select(axis, 255).max()
        inside = steps.narrow(axis, 0, 255).max()
        assert seam <= inside + 1e-9


@pytest.mark.parametrize("size", [64, 256])
def test_the_zone_plate_is_that_of_its_formula(size: int) -> None:
    x = chart("zone-plate", size, torch.float64)[0, 0]
    for row, column in ((0, 0), (size // 2, size // 2), (3, 40)):
        r2 = (row - size // 2) ** 2 + (column - size // 2) ** 2
        assert float(x[row, column]) == pytest.approx(math.cos(math.pi * r2 / size), abs=1e-9)
    outside = torch.cos(torch.tensor(math.pi * (size // 2) ** 2 / size))  # where the next tile begins
    assert float(x[size // 2, 0]) == pytest.approx(float(outside), abs=1e-6)


def test_the_weave_stays_below_nyquist_and_lives_above_the_new_one() -> None:
    X = spectrum(chart("weave")[0], periodic=True).abs().square().sum(0)
    f = torch.fft.fftfreq(256).abs()
    highest = torch.maximum(f[:, None].expand(256, 256), f[None, :].expand(256, 256))
    total = float(X.sum())
    assert float(X[highest > 0.47].sum()) / total < 1e-3
    assert float(X[highest > 0.125].sum()) / total > 0.8


def test_gratings_have_their_periods() -> None:
    x = chart("gratings", 256, torch.float64)[0, 0]
    patch = x[:64, 128:192]  # first row: vertical bars; third column: period 6
    X = torch.fft.rfft(patch[32], n=4096).abs()
    assert 4096 / int(X[20:].argmax() + 20) == pytest.approx(6, rel=0.03)


def test_drawn_edges_are_smooth_and_text_is_dark_on_light() -> None:
    assert len(chart("edges")[0, 0].unique()) > 50  # shares of covered pixels, not two levels
    page = chart("text")[0, 0]
    assert float(page.median()) > 0.8 and 0.05 < float((page < 0).float().mean()) < 0.4


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("moire", 256, "choose one of zone-plate, gratings"), ("text", 63, "got 63"), ("text", 32, "at least 64")],
)
def test_errors_name_value_and_remedy(name: str, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        chart(name, size)
