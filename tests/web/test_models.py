"""Models are loaded once, and two at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import small_vae
from pages import write_students

from patches import load_upstream
from refocus_ext.errors import UsageError
from refocus_ext.web.models import KEPT, Models, assumed_pyramid

CPU = torch.device("cpu")


def test_the_last_ones_stay_in_memory(tmp_path: Path) -> None:
    runs = write_students(tmp_path)
    (tmp_path / "third").symlink_to(runs["distill-a"])
    models = Models({**runs, "third": tmp_path / "third"}, {}, CPU)
    first, second = (models.student(name) for name in runs)
    assert models.student("distill-a") is first
    models.student("third")
    assert models.student("distill-a") is first and models.student("distill-b") is not second
    assert len(models._loaded) == KEPT
    with pytest.raises(UsageError, match="nobody is no student of this page; choose one of distill-a"):
        models.student("nobody")


def test_a_student_codes_with_the_pyramid_of_its_run(tmp_path: Path) -> None:
    coder = Models(write_students(tmp_path), {}, CPU).coder("distill-a")
    assert coder.recorded is coder.pyramid is not None and coder.trained_with == "disk"


def test_a_file_of_weights_is_taken_for_plain_var(tmp_path: Path) -> None:
    upstream = load_upstream()
    torch.save(small_vae(upstream, patch_nums=tuple(range(1, 11))).state_dict(), tmp_path / "vae.pth")
    models = Models({}, {"vae.pth": tmp_path / "vae.pth"}, CPU)
    assert models.coders == ["tokenizer vae.pth"]
    coder = models.coder("tokenizer vae.pth")
    assert coder.trained_with == "none" and "do not name" in coder.trained_on


def test_the_assumed_pyramid_is_the_papers_in_proportion() -> None:
    assert (assumed_pyramid(256).radii, assumed_pyramid(256).states) == ((12.0, 9.0, 3.0, 0.0), 4)
    assert (assumed_pyramid(64).rho_max, assumed_pyramid(64).states) == (3.0, 3)
