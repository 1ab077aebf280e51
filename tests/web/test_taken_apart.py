"""A picture taken apart: tokens as each kind of training sees it, and their maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pages import write_students
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.web.models import Coder, Models
from refocus_ext.web.taken_apart import code, colour_of, decoded_html, draw_tokens, tokens_html, with_blur


@pytest.fixture
def coder(tmp_path: Path) -> Coder:
    return Models(write_students(tmp_path), {}, torch.device("cpu")).coder("distill-a")


def test_without_blur_the_tokens_are_upstreams_own(coder: Coder, images: Tensor) -> None:
    x = images[:1]
    plain = code(coder, x, with_blur(coder.pyramid, "none", 0.0))
    own = code(coder, x, coder.pyramid)
    with torch.no_grad():
        stock, focus = coder.vae.img_to_idxBl(x), coder.model.tokens(x)  # type: ignore[union-attr]
    assert all(torch.equal(a, b[0]) for a, b in zip(plain.tokens, stock, strict=True))
    assert all(torch.equal(a, b[0]) for a, b in zip(own.tokens, focus, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plain.tokens, own.tokens, strict=True))
    assert len(own.prefixes) == len(own.psnr()) == 4


def test_psnr_is_that_to_the_picture(coder: Coder, images: Tensor) -> None:
    coded = code(coder, images[:1], coder.pyramid)
    error = (coded.prefixes[-1] - images[0]).div(2).square().mean()
    assert coded.psnr()[-1] == pytest.approx(float(-10 * error.log10()), abs=1e-4)


def test_a_radius_that_does_not_fit_is_refused(coder: Coder) -> None:
    with pytest.raises(UsageError, match=r"reaches .* px to each side"):
        with_blur(coder.pyramid, "disk", 500.0)


def test_a_map_has_the_colour_of_each_code_in_its_place() -> None:
    idx = torch.arange(100, 356)
    drawn = np.asarray(draw_tokens(idx))
    cell = drawn.shape[0] // 16
    assert drawn.shape == (16 * cell, 16 * cell, 3)
    assert all(tuple(drawn[cell * (i // 16) + 1, cell * (i % 16) + 1]) == colour_of(100 + i) for i in range(256))


def test_neighbouring_numbers_have_unlike_colours() -> None:
    for number in range(4096):
        one, other = (np.array(colour_of(n), dtype=int) for n in (number, number + 1))
        assert abs(one - other).max() > 40


def test_the_html_names_what_differs(coder: Coder, images: Tensor) -> None:
    plain, own = (code(coder, images[:1], with_blur(coder.pyramid, blur, 6.0)) for blur in ("none", "disk"))
    differ = int((own.tokens[-1] != plain.tokens[-1]).sum())
    assert f"{differ} other than sharp" in tokens_html(own, (1, 2, 3, 4), "", plain)
    assert decoded_html(own, (1, 2, 3, 4), "", "").count("<img") == 5
