"""Images in tar files are those of the same folder: bytes, names, labels, identity, and a training run on them."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from runs import TINY, run_main
from scipy.io import savemat

from refocus_ext.errors import UsageError
from refocus_ext.images.sources import archives
from refocus_ext.images.sources.archives import DEVKIT, TRAIN_TAR, VAL_TAR
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_images, find_split
from refocus_ext.storage.atomic import sha256

WNIDS = ("n01440764", "n01443537", "n02119022")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with 3, 2 and 1 images of three classes, val/ with 2 of each."""
    for number, wnid in enumerate(WNIDS):
        write_images(tmp_path / "folder" / "train" / wnid, 3 - number)
        write_images(tmp_path / "folder" / "val" / wnid, 2)
    for wnid in WNIDS:
        for file in sorted((tmp_path / "folder" / "val" / wnid).iterdir()):
            file.rename(file.with_name(f"ILSVRC2012_val_{wnid}_{file.name}"))
    return tmp_path / "folder"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def tar_of(folder: Path) -> bytes:
    """The files of a folder as image-net.org's class tars hold them, out of order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            add(archive, file.name, file.read_bytes())
    return buffer.getvalue()


@pytest.fixture
def imagenet(folder: Path, tmp_path: Path) -> Path:
    """The same images as image-net.org gives them."""
    root = tmp_path / "imagenet"
    root.mkdir()
    with tarfile.open(root / TRAIN_TAR, "w") as archive:
        for wnid in reversed(WNIDS):
            add(archive, f"{wnid}.tar", tar_of(folder / "train" / wnid))
    files = sorted((folder / "val").glob("*/*"), key=lambda file: file.name)
    with tarfile.open(root / VAL_TAR, "w") as archive:
        for file in reversed(files):
            add(archive, file.name, file.read_bytes())
    write_devkit(root / DEVKIT, [WNIDS.index(file.parent.name) + 1 for file in files])
    return root


def write_devkit(path: Path, truth: list[int]) -> None:
    kinds: list[tuple[str, Any]] = [("ILSVRC2012_ID", "i4"), ("WNID", "U16"), ("num_children", "i4")]
    rows = [(i, wnid, 0) for i, wnid in enumerate(WNIDS, start=1)] + [(4, "n00001740", 3)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=[(name, "O") for name, _ in kinds])})
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        lines = "".join(f"{number}\n" for number in truth).encode()
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines)


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """WebDataset shards: two for training, with .cls and .json labels, one for validation."""
    root = tmp_path / "shards"
    root.mkdir()
    for split, name in (("train", "imagenet1k-train-{:04d}.tar"), ("val", "imagenet1k-validation-{:02d}.tar")):
        files = sorted((folder / split).glob("*/*"))
        for number in range(2 if split == "train" else 1):
            with tarfile.open(root / name.format(number), "w") as archive:
                for i, file in enumerate(files[number :: 2 if split == "train" else 1]):
                    label = WNIDS.index(file.parent.name)
                    add(archive, f"{i:06d}.jpg", file.read_bytes())
                    if i % 2:
                        add(archive, f"{i:06d}.cls", str(label).encode())
                    else:
                        add(archive, f"{i:06d}.json", json.dumps({"label": label}).encode())
    return root


def contents(images: ImageSource) -> list[tuple[int, bytes]]:
    found = []
    for index in range(len(images)):
        with images.open(index) as file:
            found.append((images.label(index), file.read()))
    return found


def test_imagenets_tar_files_are_the_unpacked_folder(folder: Path, imagenet: Path) -> None:
    for ours, theirs in zip(find_images(str(imagenet)), find_images(str(folder)), strict=True):
        assert contents(ours) == contents(theirs) and ours.classes == theirs.classes == WNIDS
        assert ours.identity() == theirs.identity(), "a token cache of one serves the other"
    train, val = find_images(str(imagenet))
    assert train.name(0).startswith(f"{imagenet / TRAIN_TAR}/{WNIDS[0]}/")
    assert contents(pickle.loads(pickle.dumps(val))) == contents(val)


def test_a_tokenizer_trains_on_the_tar_files_as_on_the_folder(folder: Path, imagenet: Path, tmp_path: Path) -> None:
    for name, data in (("a", folder), ("b", imagenet)):
        words = [*TINY, "--small-images", "upsample", "--data", str(data), "--out", str(tmp_path / name)]
        assert run_main("tokenizer", *words, "--workers", "1") == 0
    assert sha256(tmp_path / "a" / "vae.pth") == sha256(tmp_path / "b" / "vae.pth")


def test_the_index_is_made_once_and_again_when_a_file_changes(
    imagenet: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_split(str(imagenet), "train")
    assert len(list(cache_folder.glob("refocus-var/tar-*.npz"))) == 1

    def forbidden(*_: Any) -> Any:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_entries", forbidden)
        second = find_split(str(imagenet), "train")
        assert second.identity() == first.identity() and contents(second) == contents(first)
        shutil.copy(imagenet / TRAIN_TAR, imagenet / "copy")
        (imagenet / "copy").replace(imagenet / TRAIN_TAR)
        with pytest.raises(AssertionError, match="read again"):
            find_split(str(imagenet), "train")
    for stored in cache_folder.glob("refocus-var/*"):
        for damaged in (b"damaged", b"", stored.read_bytes()[:300]):
            stored.write_bytes(damaged)
            assert find_split(str(imagenet), "train").identity() == first.identity()


def test_shards_have_the_labels_of_their_files(folder: Path, shards: Path) -> None:
    train, val = find_images(str(shards))
    for ours, split in ((train, "train"), (val, "val")):
        assert sorted(contents(ours)) == sorted(contents(find_split(str(folder), split)))
        assert ours.classes == ("0", "1", "2")
    assert train.name(0) == f"{shards / 'imagenet1k-train-0000.tar'}/000000.jpg"
    (shards / "classes.txt").write_text("tench\ngoldfish\nred fox\n")
    assert find_split(str(shards), "train").classes == ("tench", "goldfish", "red fox")
    (shards / "classes.json").write_text('["tench"]')
    with pytest.raises(UsageError, match="names 1 classes, but its shards have labels up to 2"):
        find_split(str(shards), "train")


def test_the_same_images_of_shards_are_held_out_wherever_they_lie(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a relative path, after a move; and the identity of a part says which they are."""
    for file in shards.glob("*validation*"):
        file.unlink()

    def held(data: str) -> tuple[list[str], dict[str, Any]]:
        val = find_images(data, 0.4)[1]
        return [val.key(index) for index in range(len(val))], val.identity()

    before = held(str(shards))
    assert len(before[0]) >= 2 and all(name.startswith("/imagenet1k-train-000") for name in before[0])
    monkeypatch.chdir(shards.parent)
    assert held(shards.name) == before
    assert held(str(shards.rename(tmp_path / "elsewhere"))) == before
    assert re.fullmatch(r"a share of 0.4 \([0-9a-f]{16}\)", before[1]["part"])


def test_a_json_without_a_label_does_no_harm_beside_a_cls(tmp_path: Path) -> None:
    for number, order in enumerate((("json", "cls"), ("cls", "json"))):
        members = {"cls": b"1", "json": json.dumps({"width": 8, "label": 0} if number else {"width": 8}).encode()}
        with tarfile.open(tmp_path / f"train-{number}.tar", "w") as archive:
            for key in ("a", "b"):
                add(archive, f"{key}.jpg", b"image")
                for extension in order:
                    add(archive, f"{key}.{extension}", members[extension])
    images = find_split(str(tmp_path), "train")
    assert [images.label(index) for index in range(4)] == [1, 1, 1, 1]


def test_pictures_of_shards_that_are_left_out_are_counted(tmp_path: Path) -> None:
    """A key ends at the first dot; a key has one picture; files of no picture need no label."""
    for number, keys in enumerate((("n01.5", "ok"), ("fine",))):
        with tarfile.open(tmp_path / f"train-{number}.tar", "w") as archive:
            for key in keys:
                add(archive, f"{key}.jpg", b"image")
                add(archive, f"{key}.cls", b"0")
            add(archive, "fine.seg.png", b"mask")
            add(archive, "ok.png", b"image")
            add(archive, "ok.cls", b"0")
            add(archive, "dataset_info.json", b"{}")
    for _ in range(2):  # of the tar files, and of the stored index
        images = find_split(str(tmp_path), "train")
        assert [Path(images.name(index)).name for index in range(len(images))] == ["ok.png", "fine.jpg", "ok.png"]
        (note,) = images.notes()
        assert note.startswith(
            "4 pictures of the shards left out, such as train-0.tar/n01.5.jpg: the key of a WebDataset"
        )
    for file in tmp_path.glob("*.tar"):
        file.unlink()
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "n01.5.jpg", b"image")
    with pytest.raises(UsageError, match=r"hold no images; the key of .* so that train-0\.tar/n01\.5\.jpg is none\.$"):
        find_split(str(tmp_path), "train")


def test_class_names_beside_shards_are_a_list(shards: Path) -> None:
    for content in (b'{"0": "tench"}', b'["tench", ', b'"\xff"'):
        (shards / "classes.json").write_bytes(content)
        with pytest.raises(UsageError, match=r"classes\.json .*give a JSON list"):
            find_split(str(shards), "train")


def test_what_is_missing_or_damaged_is_one_sentence(imagenet: Path, shards: Path) -> None:
    (imagenet / DEVKIT).rename(imagenet / "devkit")
    with pytest.raises(UsageError, match=f"has {TRAIN_TAR} but not {DEVKIT}"):
        find_split(str(imagenet), "val")
    whole = (imagenet / "devkit").read_bytes()
    for damaged in (b"no archive", whole[: len(whole) // 2]):
        (imagenet / DEVKIT).write_bytes(damaged)
        with pytest.raises(UsageError, match="is not ImageNet's development kit, or is damaged"):
            find_split(str(imagenet), "val")
    write_devkit(imagenet / DEVKIT, [1, 2])
    with pytest.raises(UsageError, match=r"has 6 images, but .* has labels for 2"):
        find_split(str(imagenet), "val")
    (imagenet / TRAIN_TAR).write_bytes(b"no archive" * 100)
    with pytest.raises(UsageError, match="cannot be read as an uncompressed tar file"):
        find_split(str(imagenet), "train")
    for file in shards.glob("*validation*"):
        file.unlink()
    with pytest.raises(UsageError, match="has shards for training but none for val"):
        find_images(str(shards))
    with tarfile.open(shards / "set-train-1.tar", "w") as archive:
        add(archive, "a.jpg", b"x")
    with pytest.raises(UsageError, match=r"has no label for a\.jpg"):
        find_split(str(shards), "train")
    with tarfile.open(shards / "set-train-1.tar", "w:gz") as archive:
        add(archive, "a.jpg", b"x")
    with pytest.raises(UsageError, match="cannot be read as an uncompressed tar file"):
        find_split(str(shards), "train")


def test_an_image_that_ends_early_is_an_error_of_that_image(imagenet: Path) -> None:
    train = find_split(str(imagenet), "train")
    size = (imagenet / TRAIN_TAR).stat().st_size
    with open(imagenet / TRAIN_TAR, "r+b") as file:
        file.truncate(size // 3)
    with pytest.raises(OSError, match="ends early"):
        contents(train)
