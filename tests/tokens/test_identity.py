"""What two caches differ in, in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from refocus_ext.tokens.identity import CacheIdentity

OURS = CacheIdentity(
    weights={"vae.pth": "a" * 64, "alias.pth": "b" * 64},
    pyramid={"image_size": 64, "blur": "disk"},
    alias={"codes": 512, "width": 64},
    patch_nums=[1, 2, 4],
    image_size=64,
    crop_scale=1.125,
    crops=4,
    hflip=True,
    seed=0,
    precision="fp32",
    data={"images": 12, "classes": 2, "digest": "c" * 64},
)


def test_the_same_has_no_differences() -> None:
    assert OURS.differences(OURS.to_dict()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crops": 2}, "crops = 2 (this run wants 4)"),
        ({"patch_nums": [1, 2, 3, 4]}, "patch_nums = 1,2,3,4 (this run wants 1,2,4)"),
        ({"pyramid": {"image_size": 64, "blur": "sinc"}}, "pyramid.blur = sinc (this run wants disk)"),
        ({"alias": None}, "no alias tokenizer (this run has one)"),
        ({"alias": {"codes": 64, "width": 64}}, "alias.codes = 64 (this run wants 512)"),
        (
            {"weights": {"vae.pth": "d" * 64, "alias.pth": "b" * 64}},
            f"another tokenizer (vae.pth {'d' * 12}, not {'a' * 12})",
        ),
        ({"weights": {"vae.pth": "a" * 64}}, "another tokenizer (without alias.pth)"),
        (
            {"data": {"images": 12, "classes": 2, "digest": "e"}},
            "another data set (the same number of images, but other files, names or labels)",
        ),
        (
            {"data": {"images": 9, "classes": 3, "digest": "e"}},
            "another data set (9 images in 3 classes, not 12 in 2)",
        ),
    ],
)
def test_a_difference_in_words(changes: dict[str, Any], words: str) -> None:
    assert OURS.differences(dataclasses.replace(OURS, **changes).to_dict()) == [words]


def test_several_differences_are_all_told() -> None:
    assert len(OURS.differences(OURS.to_dict() | {"seed": 3, "hflip": False, "precision": "bf16"})) == 3


def test_an_index_without_a_field_differs() -> None:
    theirs = {name: value for name, value in OURS.to_dict().items() if name != "crop_scale"}
    assert OURS.differences(theirs) == ["crop_scale = None (this run wants 1.125)"]
