"""A subset's class folders keep the numbers that they have in a larger list."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
from conftest import write_images

from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import choose_class_names, imagenet_names
from refocus_ext.images.class_numbers import are_wnids, class_list, imagenet_wnids, numbers_in_use, renumbered
from refocus_ext.images.sources.folder import image_folder

GOLDEN, CAT = "n02099601", "n02123045"  # 207 and 281

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for number, wnid in enumerate((CAT, GOLDEN)):
            write_images(tmp_path / "data" / split / wnid, count, seed=number)
    return tmp_path / "data"


@needs_timm
def test_an_imagenet_subset_keeps_imagenets_numbers(subset: Path) -> None:
    images = image_folder(str(subset), "train")
    kept = renumbered(images, class_list("imagenet"))
    assert are_wnids(images.classes) and list(images.labels) == [0, 0, 1, 1]
    assert [kept.label(i) for i in range(len(kept))] == [207, 207, 281, 281]
    assert numbers_in_use(kept) == [207, 281] and numbers_in_use(images) == [0, 1]
    assert kept.identity() == images.identity() and [kept.name(i) for i in range(4)] == list(images.paths)
    assert [kept.key(i) for i in range(4)] == [images.key(i) for i in range(4)] and kept.notes() == images.notes()
    again = pickle.loads(pickle.dumps(kept))
    assert again == kept != renumbered(image_folder(str(subset), "val"), class_list("imagenet"))


@needs_timm
def test_the_names_of_a_run_with_them_are_imagenets(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(imagenet_wnids()))
    assert choose_class_names(None, tmp_path / "classes.json", 1000) == imagenet_names()


def test_a_validation_set_that_lacks_a_class_has_the_same_numbers(subset: Path) -> None:
    for file in (subset / "val" / GOLDEN).iterdir():
        file.unlink()
    (subset / "val" / GOLDEN).rmdir()
    val = renumbered(image_folder(str(subset), "val"), ["n0", GOLDEN, CAT])
    assert [val.label(i) for i in range(len(val))] == [2]


@pytest.mark.parametrize(
    "text",
    [
        "n01440764\nn02099601\n",
        "n01440764 tench, Tinca tinca\r\nn02099601 golden retriever\n\n",
        '["n01440764", "n02099601"]',
        '{"0": ["n01440764", "tench"], "1": ["n02099601", "golden_retriever"]}',
    ],
)
def test_the_usual_lists_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    assert class_list(str(tmp_path / "list")) == ("n01440764", GOLDEN)


def test_names_with_spaces_are_whole(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("great white shark\ntench, a fish\n")
    assert class_list(str(tmp_path / "list")) == ("great white shark", "tench, a fish")


def test_what_does_not_fit_is_a_sentence(subset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_folder(str(subset), "train")
    with pytest.raises(UsageError, match=f"lacks 1 of the data's 2, such as '{CAT}'"):
        renumbered(images, [GOLDEN])
    with pytest.raises(UsageError, match="has 'a' twice"):
        renumbered(images, ["a", "b", "a"])
    with pytest.raises(UsageError, match=r"cannot be read as a list of class folders"):
        class_list(str(tmp_path / "nowhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="timm, which is not installed here; give a file of them instead"):
        class_list("imagenet")
