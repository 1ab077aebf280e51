"""An image that comes into focus is the image that `sample` draws, and its changes add up to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from students import write_run

from refocus_ext.sampling.sampler import Prefixes, sample_images
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.web.choices import sample_options
from refocus_ext.web.focusing import Focusing, focus


@pytest.fixture
def student(tmp_path: Path) -> Student:
    return load_student(write_run(tmp_path / "run"))


def test_it_is_the_image_that_sample_draws(student: Student) -> None:
    seen: list[Focusing] = []
    image = focus(student, 1, sample_options(3, 4), seen.append)
    watch = Prefixes(student)
    expected = sample_images(student, [1], seed=3, watch=watch)[0]
    assert torch.equal(image, expected) and torch.equal(seen[-1].prefixes[-1], expected)
    assert [len(step.prefixes) for step in seen] == [1, 2, 3, 4] and [step.tokens for step in seen] == [1, 5, 14, 30]
    assert all(torch.equal(one, other[0]) for one, other in zip(seen[-1].prefixes, watch.images, strict=True))


def test_the_changes_add_up_to_the_image(student: Student) -> None:
    seen: list[Focusing] = []
    image = focus(student, 0, sample_options(0, 4), seen.append)
    assert torch.allclose(0.5 + torch.stack(seen[-1].changes).sum(0), image, atol=1e-6)
    assert seen[0].html().count("<img") == 3 and seen[-1].html().count("<img") == 9
    assert "after 4 of 4 scales, 30 tokens" in seen[-1].html()
