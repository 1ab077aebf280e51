"""From a folder of pictures as people have them to samples, by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from PIL import Image
from runs import TINY, run_main

DISTILL = "distill --depth 2 --steps 2 --crops 1 --save-every 2 --picture-every 2 --samples 2".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out + captured.err


def tiny(batch: int) -> list[str]:
    words = ["tokenizer", *TINY]
    words[words.index("--batch-size") + 1] = str(batch)
    return words


def test_a_folder_of_phone_pictures(here: Path, capsys: Any) -> None:
    write_images(here / "photos, 2024", 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(here / "photos, 2024" / "000.jpg").save(here / "photos, 2024" / "turned.JPG", exif=exif)
    Image.new("RGBA", (80, 70), (1, 2, 3, 0)).save(here / "photos, 2024" / "clear.webp")
    Image.new("I;16", (80, 70), 500).save(here / "photos, 2024" / "deep.tif")
    for name in ("a.heic", "notes.txt", ".DS_Store"):
        (here / "photos, 2024" / name).write_bytes(b"x")
    words = [*tiny(4), "--data", "photos, 2024", "--out", "tok"]
    assert run_main(*words) == 2
    assert "hold out a share of the training images (--val-share 0.05)" in told(capsys) and not Path("tok").exists()
    assert run_main(*words, "--val-share", "1") == 2 and "no share" in told(capsys)
    assert run_main(*words, "--val-share", "0.1") == 0
    plan = told(capsys)
    assert "all its images are one class" in plan and "1 .heic" in plan and "are held out for validation" in plan
    assert "images: 11 in 1 class," in plan and "on held-out images" in plan
    assert json.loads(Path("tok/config.json").read_text())["identity"]["val_share"] == 0.1
    assert run_main(*words) == 2  # the run is another one without the share
    assert "val/" in told(capsys)
    assert run_main("tokens", "--tokenizer", "tok", "--crops", "1") == 0
    assert "images: 11 of photos, 2024 (all but a share of 0.1)" in told(capsys)
    assert run_main(*DISTILL, "--tokenizer", "tok", "--batch-size", "4", "--out", "dis") == 0
    assert "cross-entropy on 2 held-out images" in told(capsys)
    assert run_main("eval", "--tokenizer", "tok") == 0
    assert "on 2 images of photos, 2024 (a share of 0.1)" in told(capsys)
    assert run_main("sample", "--student", "dis", "--classes", "images", "--count", "2") == 0
    assert "parameters, 1 class, 32 px" in told(capsys)
    assert json.loads(Path("dis/classes.json").read_text()) == ["images"]
    Path("photos, 2024").rename("renamed")
    told(capsys)
    for again in (
        [*words, "--val-share", "0.1"],
        [*DISTILL, "--tokenizer", "tok", "--batch-size", "4", "--out", "dis"],
    ):
        moved = ["renamed" if word == "photos, 2024" else word for word in again]
        assert run_main(*moved, *(() if "--data" in moved else ("--data", "renamed"))) == 0
        assert "already trained" in told(capsys)


def test_one_image_one_class_and_a_batch_of_one(here: Path, capsys: Any) -> None:
    write_images(here / "data" / "train" / "a, b", 1)
    write_images(here / "data" / "val" / "a, b", 1)
    assert run_main(*tiny(4), "--data", "data", "--out", "tok") == 2
    assert "--batch-size 4 is larger than the data set of 1 image; choose at most 1" in told(capsys)
    assert run_main(*tiny(1), "--data", "data", "--out", "tok") == 0
    assert run_main("tokens", "--tokenizer", "tok", "--crops", "1") == 0
    assert run_main("eval", "--tokenizer", "tok") == 0
    words = [*DISTILL, "--tokenizer", "tok", "--batch-size", "1", "--out", "dis"]
    told(capsys)
    assert run_main(*words) == 2 and "validation has 1 image, but needs at least two" in told(capsys)
    assert run_main(*words[:-1], "alone", "--teacher", "off") == 0
    write_images(here / "data" / "val" / "a, b", 2)
    assert run_main(*words) == 0
    assert run_main("sample", "--student", "dis", "--classes", "a, b,0", "--count", "2") == 0


def test_a_resumed_run_keeps_its_classes(here: Path, capsys: Any) -> None:
    for split in ("train", "val"):
        write_images(here / "data" / split / "b", 4)
    words = [*tiny(4), "--data", "data", "--out", "tok"]
    assert run_main(*words) == 0
    write_images(here / "data" / "train" / "a", 4)
    told(capsys)
    assert run_main(*words) == 2
    assert "tok was begun on other classes (the data has 1 that it lacks, such as 'a')" in told(capsys)
    assert json.loads(Path("tok/classes.json").read_text()) == ["b"]


@pytest.mark.slow
def test_twenty_thousand_classes(here: Path, capsys: Any) -> None:
    import os

    write_images(here / "source", 2)
    for number in range(20_000):
        folder = here / "data" / f"class {number}, kind"
        folder.mkdir(parents=True)
        for name in ("000.jpg", "001.jpg"):
            os.link(here / "source" / name, folder / name)
    assert run_main(*tiny(4), "--data", "data", "--out", "tok", "--val-share", "0.05") == 0
    words = [*DISTILL, "--tokenizer", "tok", "--batch-size", "4", "--cache", "off", "--val-images", "4", "--out", "dis"]
    assert run_main(*words) == 0
    assert "20000 classes" in told(capsys)
    assert run_main("sample", "--student", "dis", "--classes", "class 19999, kind,class 7, kind,3", "--count", "3") == 0
    assert run_main("eval", "--tokenizer", "tok", "--images", "4") == 0
