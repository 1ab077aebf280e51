"""Pictures as HTML: nothing but text, whatever their captions say; and differences that are amplified as told."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from refocus_ext.web.figures import Figure, figures, shown, shown_change


def test_pictures_are_inside_and_captions_are_text() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    html = figures([Figure(picture, "<script>a", 'b"c')], title="x & y")
    assert "<script>" not in html and "&lt;script&gt;a" in html and "x &amp; y" in html
    (url,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))), np.asarray(picture))
    assert 'download="x-y-script-a.png"' in html


def test_a_change_is_amplified_by_what_is_said() -> None:
    change = torch.zeros(3, 4, 4)
    change[:, 0, 0] = 0.01
    picture, gain, rms = shown_change(change)
    assert rms == pytest.approx(255 * 0.0025) and gain == pytest.approx(0.5 / 0.0075)
    pixels = np.asarray(picture)
    assert (pixels[0, 0] == 255).all() and (pixels[1:] == np.asarray(shown(torch.full((3, 1, 1), 0.5)))).all()
    assert shown_change(torch.zeros(3, 4, 4))[1:] == (0.0, 0.0)
