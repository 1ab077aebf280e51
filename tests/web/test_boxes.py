"""The box on a picture: taps, text, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from refocus_ext.sampling.editing import Box, kept_region, parse_box
from refocus_ext.web.boxes import BOX, box_of, cell_at, draw_box, enlarged, middle_box


@pytest.mark.parametrize(
    ("point", "cell"), [((0, 0), (0, 0)), ((127, 128), (0, 1)), ((511.9, 300), (3, 2)), ((600, -5), (3, 0))]
)
def test_a_tap_is_on_a_latent_cell(point: tuple[float, float], cell: tuple[int, int]) -> None:
    assert cell_at(*point, side=512, image_size=64) == cell


@pytest.mark.parametrize("first", [(1, 2), (3, 0), (1, 0), (3, 2)])
def test_any_two_opposite_corners_give_the_box(first: tuple[int, int]) -> None:
    other = (4 - first[0], 2 - first[1])
    text = box_of(first, other)
    assert text == "16,0,64,48"
    box, unit = parse_box(text, 64)
    assert (box, unit) == (Box(1, 0, 4, 3), "pixels")
    assert int((~kept_region(box, 4, outside=False)).sum()) == 9


def test_one_cell_tapped_twice_is_a_box() -> None:
    assert parse_box(box_of((0, 0), (0, 0)), 64)[0] == Box(0, 0, 1, 1)


@pytest.mark.parametrize(("size", "box"), [(64, Box(1, 1, 3, 3)), (256, Box(4, 4, 12, 12)), (32, Box(0, 0, 2, 2))])
def test_the_first_box_is_the_middle(size: int, box: Box) -> None:
    assert parse_box(middle_box(size), size)[0] == box


def test_the_box_is_drawn_where_it_is() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    drawn = np.asarray(draw_box(picture, Box(1, 0, 2, 3)))
    side = enlarged(picture).width
    assert drawn.shape == (side, side, 3)
    rows, columns = np.nonzero((drawn == BOX).all(-1))
    cell = side // 4
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (cell, 2 * cell, 0, 3 * cell)
    assert not (np.asarray(draw_box(picture, None)) == BOX).all(-1).any()
