"""Samples are compared with the photograph they were asked to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from students import lively_var

from patches import load_upstream
from patches.sampling import Guidance
from refocus_ext.distill import recognition
from refocus_ext.distill.recognition import EACH, Recognized, one_of_each, recognized
from refocus_ext.images.crops import Crops
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import demo_photographs, find_images
from refocus_ext.images.sources.letters import letters


@pytest.fixture
def photographs() -> ImageSource:
    return demo_photographs()


def test_only_data_with_one_photograph_a_class_is_compared(image_tree: Path, photographs: ImageSource) -> None:
    assert one_of_each(photographs)
    assert not one_of_each(find_images(str(image_tree), 0.0)[0]) and not one_of_each(letters("letters", "train"))


def test_the_share_is_of_samples_nearest_to_their_own(
    photographs: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that shows the photograph itself, dimmed, is right always; one that shows the next one, never; one that shows
    the coffee cup, for the coffee cup alone."""
    crops = Crops(photographs, 64, random=False)
    cup = photographs.classes.index("coffee")
    shown: dict[str, Any] = {"own": lambda n: n, "next": lambda n: (n + 1) % len(photographs), "cup": lambda n: cup}
    expected = {"own": len(photographs) * EACH, "next": 0, "cup": EACH}
    for name, index in shown.items():

        def drawn(var: Any, label_B: torch.Tensor, *_: Any, index: Any = index) -> torch.Tensor:
            return torch.stack([crops[index(int(label))].image for label in label_B]) * 0.4 + 0.5

        monkeypatch.setattr(recognition, "sample", drawn)
        var = lively_var(load_upstream(), num_classes=len(photographs))
        *_, last = recognized(var, photographs, 64, 0, Guidance(cfg=1.5))
        assert last == Recognized(expected[name], len(photographs) * EACH, 1.5), name
    line = Recognized(190, 190, 1.5).line()
    assert "100% of 190 samples" in line and line.endswith("(cfg 1.5)")


def test_samples_are_drawn_by_the_student_and_it_trains_on(photographs: ImageSource) -> None:
    var = lively_var(load_upstream(), num_classes=len(photographs)).train()
    counts = [result.samples for result in recognized(var, photographs, 64, 0, Guidance(cfg=1.5))]
    assert counts[-1] == EACH * len(photographs) and counts == sorted(counts) and var.training
