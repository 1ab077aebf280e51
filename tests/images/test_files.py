"""Which files of a folder are pictures, and what is told about the others."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from conftest import write_images
from PIL import Image

from refocus_ext.errors import UsageError
from refocus_ext.images.photographs import find_photographs
from refocus_ext.images.sources.files import EXTENSIONS, IMAGE_FOLDER, find_pictures, in_words, shown
from refocus_ext.images.sources.folder import image_folder


def names(folder: Path) -> list[str]:
    return sorted(os.path.relpath(os.path.join(*picture), folder) for picture in find_pictures(folder).pictures)


def left_out(folder: Path) -> dict[str, int]:
    return dict(find_pictures(folder).left_out)


def test_all_that_torchvision_takes_and_more_in_any_letter_case(tmp_path: Path) -> None:
    assert set(IMAGE_FOLDER) <= set(EXTENSIONS) and {".jfif", ".gif", ".avif"} <= set(EXTENSIONS)
    every = [f"{number}{extension}" for number, extension in enumerate(EXTENSIONS)]
    every += [f"{name}x{extension.upper()}" for name, extension in enumerate(EXTENSIONS)] + ["z.JpEg"]
    for name in every:
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == sorted(every) and left_out(tmp_path) == {}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_counts_can_be_opened(extension: str, tmp_path: Path) -> None:
    file = tmp_path / "train" / "a" / f"picture{extension.upper()}"
    file.parent.mkdir(parents=True)
    mode = {".pgm": "L", ".pbm": "1", ".pfm": "F"}.get(extension, "RGB")
    Image.new(mode, (8, 8)).save(file)
    images = image_folder(str(tmp_path), "train")
    assert len(images) == 1 and images.notes() == ()


def test_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 1)
    for name in ("a.txt", "b.TXT", "c.mov", "README", "d.jpg.part", "Thumbs.db", ".DS_Store", "._000.jpg", ".x.jpg"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"x")
    (tmp_path / "train" / "loose.jpg").write_bytes(b"x")
    images = image_folder(str(tmp_path), "train")
    assert len(images) == 1
    (note,) = images.notes()
    told = note.removeprefix(f"left out of {tmp_path / 'train'}: ").split(", ")
    assert told[:2] == ["3 left by tools", "2 .txt"] and told[-1] == "1 more"
    assert set(told[2:-1]) < {"1 hidden", "1 .mov", "1 .part", "1 without extension", "1 beside the class folders"}


def test_pictures_of_phones_that_cannot_be_opened_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"x")
    assert in_words(find_pictures(tmp_path).left_out) == "1 .heic; convert the HEIC pictures to JPEG to use them"


def test_hidden_folders_and_leftovers_at_any_depth(tmp_path: Path) -> None:
    for folder in ("deep/.thumbnails", "__MACOSX/deep", "deep/@eaDir", ".git", "deep/er"):
        write_images(tmp_path / folder, 1)
    assert names(tmp_path) == ["deep/er/000.jpg"]
    assert left_out(tmp_path) == {"hidden": 2, "left by tools": 2}


def test_leftovers_are_no_classes(tmp_path: Path) -> None:
    for folder in ("cat", "__MACOSX", ".cache", "@eaDir"):
        write_images(tmp_path / "train" / folder, 1)
    assert image_folder(str(tmp_path), "train").classes == ("cat",)


# ------------------------------------------------------------------------------------------------ links


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", 2)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "000.jpg")
    (tmp_path / "here" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "here" / "self.jpg").symlink_to("self.jpg")
    assert names(tmp_path / "here") == ["folder/000.jpg", "folder/001.jpg", "linked.jpg"]
    assert left_out(tmp_path / "here") == {"linked to nothing": 2}


def test_loops_of_links_end(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "b", 1)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "top").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b")
    assert names(tmp_path / "a") == ["b/000.jpg"]
    assert left_out(tmp_path / "a") == {"linked to a folder already read": 3}


def test_many_folders_that_link_to_one_another_are_read_once(tmp_path: Path) -> None:
    for name in "abcdefghijkl":
        write_images(tmp_path / name, 1)
        for other in "abcdefghijkl":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    assert len(names(tmp_path)) == 12


def test_a_class_that_links_to_its_parent_is_none(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 1)
    (tmp_path / "train" / "all").symlink_to(tmp_path / "train")
    images = image_folder(str(tmp_path), "train")
    assert images.classes == ("cat",) and "1 linked to a folder already read" in images.notes()[0]


def test_a_subset_made_of_links(tmp_path: Path) -> None:
    write_images(tmp_path / "imagenet" / "train" / "n1", 2)
    (tmp_path / "subset" / "train").mkdir(parents=True)
    (tmp_path / "subset" / "train" / "n1").symlink_to(tmp_path / "imagenet" / "train" / "n1")
    images = image_folder(str(tmp_path / "subset"), "train")
    assert images.classes == ("n1",) and len(images) == 2 and images.notes() == ()


# ------------------------------------------------------------------------------------------------ odd entries


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert names(tmp_path) == [] and left_out(tmp_path) == {"not regular": 1}


def test_names_in_any_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.fsencode(tmp_path) + b"/train/caf\xe9"
    os.makedirs(folder)
    write_images(tmp_path / "one", 1)
    data = (tmp_path / "one" / "000.jpg").read_bytes()
    for name in (b"\xff\xfe.jpg", b"line\nbreak.jpg", b"\x1b[31mred.jpg", "Zürich 東京.jpg".encode()):
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
    images = image_folder(str(tmp_path), "train")
    assert images.classes == ("caf\\xe9",) and len(images) == 4
    told = [images.name(index) for index in range(4)]
    assert all(name.isprintable() for name in told) and any("Zürich 東京.jpg" in name for name in told)
    print(*told)
    assert images.identity() == pickle.loads(pickle.dumps(images)).identity()
    for index in range(4):
        with images.open(index) as opened:
            assert opened.read() == data
    assert len(find_photographs([str(tmp_path / "train")])) == 4


def test_shown_leaves_ordinary_names() -> None:
    assert shown("a b, Zürich.jpg") == "a b, Zürich.jpg" and shown("a\n\udcff") == "a\\n\\xff"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"the folder .* cannot be read \(Permission denied\)"):
        find_pictures(tmp_path)
