"""Folders as people have them: without val/, without classes, with classes that val/ lacks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import write_images

from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import check_class_map, label_of, labels_of
from refocus_ext.images.sources.folder import ImageList, NoValidation, image_folder
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_images, find_split, split_name
from refocus_ext.images.sources.parts import Part, Renumbered, hold_out, numbered_as


def labels(images: ImageSource) -> dict[str, int]:
    """The label of each image by the folder that it lies in."""
    return {Path(images.name(i)).parent.name: images.label(i) for i in range(len(images))}


# ------------------------------------------------------------------------------------------------ numbers of classes


def test_a_class_has_one_number_where_val_lacks_others(tmp_path: Path) -> None:
    for name in ("ape", "bee", "cat", "dog"):
        write_images(tmp_path / "train" / name, 1)
    for name in ("bee", "dog"):
        write_images(tmp_path / "val" / name, 2)
    train, val = find_images(str(tmp_path))
    assert labels(train) == {"ape": 0, "bee": 1, "cat": 2, "dog": 3}
    assert labels(val) == {"bee": 1, "dog": 3} and val.classes == train.classes
    assert isinstance(val, Renumbered) and val != train and len(val) == 4
    assert val.identity()["classes"] == 4 and val.identity() != image_folder(str(tmp_path), "val").identity()
    with val.open(0) as file:
        assert len(file.read()) > 100


def test_equal_classes_leave_the_source_as_it_is(image_tree: Path) -> None:
    assert find_images(str(image_tree))[1] == image_folder(str(image_tree), "val")


def test_other_letter_case_is_pointed_out(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "Cat", 1)
    write_images(tmp_path / "val" / "cat", 1)
    with pytest.raises(
        UsageError, match=r"val/ has the class cat, which train/ does not have \(but Cat, in other letter case\)"
    ):
        find_images(str(tmp_path))


def test_a_run_keeps_its_numbers(tmp_path: Path) -> None:
    file = tmp_path / "run" / "classes.json"
    check_class_map(file, ["a"])
    file.parent.mkdir()
    file.write_text(json.dumps(["a", "c"]))
    check_class_map(file, ("a", "c"))
    for classes, words in (
        (["a", "b", "c"], "the data has 1 that it lacks, such as 'b'"),
        (["a"], "it has 1 that the data lacks, such as 'c'"),
        (["c", "a"], "another order"),
    ):
        with pytest.raises(UsageError, match=rf"run was begun on other classes \(.*{words}.*labels would change"):
            check_class_map(file, classes)
    file.write_text("[")
    with pytest.raises(UsageError, match="cannot be read as class names"):
        check_class_map(file, ["a"])


# ------------------------------------------------------------------------------------------------ layouts


def test_one_folder_of_images_is_one_class(tmp_path: Path) -> None:
    write_images(tmp_path / "my photos", 3)
    write_images(tmp_path / "my photos" / "2024" / "may", 2)
    images = image_folder(str(tmp_path / "my photos"), "train")
    assert images.classes == ("images",) and set(images.labels) == {0} and len(images) == 5
    (note,) = images.notes()
    assert note.endswith("all its images are one class, also the 2 in its folders, because 3 lie beside them")
    before = images.identity()
    (tmp_path / "my photos").rename(tmp_path / "renamed")
    assert image_folder(str(tmp_path / "renamed"), "train").identity() == before


def test_a_picture_beside_class_folders_does_not_merge_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 2)
    write_images(tmp_path, 1)
    images = image_folder(str(tmp_path), "train")
    assert images.classes == ("cat", "dog") and len(images) == 4
    first, second = images.notes()
    assert first.endswith("its 2 folders are the classes") and "left out" in second and "1 beside" in second


def test_a_folder_of_what_is_no_picture_says_so(tmp_path: Path) -> None:
    for name in ("a.heic", "b.mov"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no pictures are 1 \.heic, 1 \.mov; convert the HEIC pictures to JPEG"):
        image_folder(str(tmp_path), "train")


def test_folders_without_train_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog" / "deep", 1)
    (tmp_path / "empty").mkdir()
    images = image_folder(str(tmp_path), "train")
    assert images.classes == ("cat", "dog") and images.labels == (0, 0, 1)
    assert "its 2 folders are the classes" in images.notes()[0]


def test_splits_without_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "faces" / "train", 3)
    write_images(tmp_path / "faces" / "val", 2)
    train, val = find_images(str(tmp_path / "faces"))
    assert train.classes == val.classes == ("images",) and (len(train), len(val)) == (3, 2)


def test_a_val_folder_as_imagenet_unpacks_it(tmp_path: Path) -> None:
    for name in ("n1", "n2"):
        write_images(tmp_path / "train" / name, 1)
    write_images(tmp_path / "val", 2)
    with pytest.raises(UsageError, match=r"val has no class folders, which .*train has; images belong in .*val/CLASS"):
        find_images(str(tmp_path))


def test_letter_case_of_the_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "Train" / "a", 2)
    write_images(tmp_path / "VAL" / "a", 1)
    train, val = find_images(str(tmp_path))
    assert (len(train), len(val)) == (2, 1)


def test_without_val_it_says_what_can_be_done(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 2)
    for folder in (tmp_path, tmp_path / "train"):
        with pytest.raises(NoValidation, match=r"has no val/ folder for validation .*hold out a share"):
            find_images(str(folder))


# ------------------------------------------------------------------------------------------------ held-out images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", 40, size=(8, 8))
    return tmp_path / "photos"


def names_of(images: ImageSource) -> set[str]:
    return {Path(images.name(i)).name for i in range(len(images))}


def test_held_out_images_are_never_trained_on(photos: Path) -> None:
    train, val = find_images(str(photos), 0.2)
    assert isinstance(train, Part) and isinstance(val, Part) and train != val
    assert not names_of(train) & names_of(val) and len(train) + len(val) == 40 and 2 <= len(val) <= 16
    assert find_split(str(photos), "train", 0.2) == train and find_split(str(photos), "val", 0.2) == val
    assert f"{len(val)} of 40 images" in train.notes()[-1] and train.notes() == val.notes()
    assert split_name(str(photos), "val", val) == f"{photos} (a share of 0.2)"
    assert train.identity() != val.identity() and train.identity()["images"] == len(train)
    assert train.identity() != find_images(str(photos), 0.1)[0].identity()
    with val.open(0) as file:
        assert len(file.read()) > 100


def test_the_same_images_are_held_out_after_a_move_or_additions(photos: Path, tmp_path: Path) -> None:
    before = names_of(find_images(str(photos), 0.2)[1])
    moved = photos.rename(tmp_path / "elsewhere")
    assert names_of(find_images(str(moved), 0.2)[1]) == before
    write_images(moved / "new", 30, size=(8, 8), seed=1)
    after = find_images(str(moved), 0.2)[1]
    assert before == {Path(after.name(i)).name for i in range(len(after)) if Path(after.name(i)).parent == moved}


def test_a_tiny_share_holds_out_two_images_and_never_the_last_of_a_class(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 5, size=(8, 8))
    assert len(hold_out(image_folder(str(tmp_path / "photos"), "train"), 1e-9).val) == 2
    for name in "abc":
        write_images(tmp_path / "classes" / name, 1 if name == "b" else 3, size=(8, 8))
    train, val = hold_out(image_folder(str(tmp_path / "classes"), "train"), 0.99)
    assert sorted(train.label(i) for i in range(len(train))) == [0, 1, 2] and len(val) == 4
    assert train.classes == val.classes == ("a", "b", "c")


def test_single_images_cannot_be_held_out(tmp_path: Path) -> None:
    for name in "abc":
        write_images(tmp_path / name, 1, size=(8, 8))
    with pytest.raises(UsageError, match="no image can be held out for validation"):
        find_images(str(tmp_path), 0.5)


def test_validation_images_alone_can_be_measured(image_tree: Path) -> None:
    shutil.rmtree(image_tree / "train")
    assert find_split(str(image_tree), "val", 0.1) == find_split(str(image_tree), "val")


def test_a_val_folder_comes_before_a_share(image_tree: Path) -> None:
    assert find_images(str(image_tree), 0.3) == find_images(str(image_tree))
    assert find_images("", 0.3) == find_images("")


def test_numbering_of_a_part(tmp_path: Path) -> None:
    images = ImageList(("x/a.jpg", "x/b.jpg"), (0, 0), ("b",))
    part = Part(images, (1,), "half")
    assert numbered_as(part, ("a", "b")).label(0) == 1
    assert dataclasses.replace(part, indices=(0,)) != part


# ------------------------------------------------------------------------------------------------ names of classes


def test_names_with_commas() -> None:
    names = ("dog", "dog, big", "crane, bird", "crane, machine, big", "7")
    assert labels_of("dog, big,dog,crane, bird", names, 5) == [1, 0, 2]
    assert labels_of('"Crane, machine, big", 7, 3', names, 5) == [3, 4, 3]
    assert labels_of("none,dog", names, 5) == [5, 0]
    with pytest.raises(UsageError, match=r"no class 'crane'; did you mean"):
        labels_of("crane,dog", names, 5)
    with pytest.raises(UsageError, match="no classes are given"):
        labels_of(" , ,", names, 5)


def test_twenty_thousand_names() -> None:
    names = tuple(f"kind {i}, of many" for i in range(20_000))
    assert labels_of("kind 19999, of many,3,kind 7, of many", names, 20_000) == [19999, 3, 7]
    assert label_of("19998", names, 20_000) == 19998
