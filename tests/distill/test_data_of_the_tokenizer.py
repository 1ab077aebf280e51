"""What `distill` takes over from its tokenizer's run about the data, and what it says where the data does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_images
from runs import TINY, run_main

DISTILL = (
    "distill --preset demo --depth 2 --steps 1 --crops 1 --batch-size 4 --samples 0 --device cpu --cache off".split()
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 6), ("val", 2)):
        write_images(tmp_path / "data" / split / "cat", count)
    return tmp_path


def tokenizer(*words: str) -> int:
    return run_main("tokenizer", *TINY, "--steps", "3", "--data", "data", "--out", "tok", "--device", "cpu", *words)


def distill(*words: str) -> int:
    return run_main(*DISTILL, "--tokenizer", "tok", "--teacher", "off", *words)


def test_small_images_are_upsampled_as_in_the_tokenizers_run(here: Path, capsys: Any) -> None:
    write_images(here / "data" / "train" / "ant", 1, size=(20, 20))
    assert tokenizer() == 2
    assert "allow upsampling of small images (--small-images upsample)." in capsys.readouterr().err
    assert tokenizer("--small-images", "upsample") == 0
    assert distill("--out", "run") == 0
    assert "1 of 7 images checked are smaller than 32 px and are upsampled" in capsys.readouterr().out
    for command in (distill, lambda *words: run_main("tokens", "--tokenizer", "tok", "--device", "cpu", *words)):
        assert command("--small-images", "refuse") == 2
        assert "is 20x20 pixels, smaller than the 32 pixel crop" in (error := capsys.readouterr().err)
        assert "(--small-images upsample)." in error
    assert distill("--out", "run", "--small-images", "upsample") == 0  # what it was, in words
    assert "small_images" not in capsys.readouterr().out


@pytest.mark.parametrize("word", ["refuse", "upsample"])
def test_what_is_typed_wins(word: str, here: Path) -> None:
    write_images(here / "data" / "train" / "ant", 1, size=(20, 20))
    assert tokenizer("--small-images", "upsample") == 0
    assert distill("--small-images", word, "--dry-run") == (2 if word == "refuse" else 0)


def test_one_validation_image_is_enough_without_a_teacher(capsys: Any) -> None:
    Path("data/val/cat/001.jpg").unlink()
    assert tokenizer() == 0
    assert distill("--out", "off") == 0
    assert "cross-entropy on 1 held-out image:" in capsys.readouterr().out
    assert distill("--teacher", "on", "--out", "on") == 2
    error = capsys.readouterr().err
    assert "validation has 1 image, but needs at least two images, because one control" in error
    assert "give more validation images, or train without a teacher (--teacher off)." in error
    write_images(Path("data/val/cat"), 2)
    assert distill("--teacher", "on", "--val-images", "1") == 2
    assert "raise --val-images, or train without a teacher (--teacher off)." in capsys.readouterr().err
