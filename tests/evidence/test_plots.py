"""Plots of the alias benchmark: every filter has its colour and its place."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from refocus_ext.evidence.aliasing import plots
from refocus_ext.evidence.aliasing.filters import decimated_states
from refocus_ext.optics.charts import chart
from refocus_ext.optics.names import BLURS
from refocus_ext.optics.pyramid import FocusPyramid

STATES = decimated_states(FocusPyramid(image_size=64, states=3, rho_max=6.0))


def test_every_filter_is_drawn_once_in_a_colour_of_its_own() -> None:
    measured = {filter.name for state in STATES for filter in state.filters}
    assert set(plots.DRAWN) == set(plots.COLOURS) == measured and len(plots.DRAWN) == len(measured)
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert set(BLURS) - {"sharp"} <= measured  # as a filter, "sharp" is "none"


def test_a_transfer_plot_is_a_png_that_repeats_to_the_byte(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.draw_transfer(tmp_path / name, STATES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 600


def test_views_have_a_row_for_each_chart_and_state_and_a_column_for_each_filter() -> None:
    one = plots.views(STATES[:1], [("zone-plate", chart("zone-plate", 64))], side=32)
    four = plots.views(STATES, [(name, chart(name, 64)) for name in ("zone-plate", "weave")], side=32)
    assert four.width >= one.width > 32 * len(plots.DRAWN) and four.height == one.height + 3 * (32 + 6)
