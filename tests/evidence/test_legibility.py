"""The measures of drawn letters, on letters that are spoiled on purpose, and the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import parsed, run_main
from torch import Tensor

from refocus_ext.evidence.letters.bands import BandEnergy, decibels
from refocus_ext.evidence.letters.measures import LetterScores, fresh_letters, letter_set
from refocus_ext.evidence.letters.reader import Reader, load_reader, save_reader, weights_file
from refocus_ext.evidence.letters.reader_training import spoil as spoil_for_training
from refocus_ext.evidence.letters.reader_training import train_reader
from refocus_ext.evidence.letters.spoiled import KINDS, SHUFFLED, spoil
from refocus_ext.images.sources.kinds import find_split
from refocus_ext.images.sources.letters import LEVELS
from refocus_ext.sampling.sampler import FOR_FID

CPU = torch.device("cpu")
IMAGES = 780


@pytest.fixture(scope="module", params=["letters", "letters-fine"])
def spoiled(request: pytest.FixtureRequest) -> tuple[str, dict[str, LetterScores]]:
    """The measures of 780 letters of a level, spoiled in every way."""
    source, reader = find_split(request.param, "val"), load_reader(request.param)
    fresh = letter_set(reader, fresh_letters(source, 64, IMAGES, 104))
    others = list(fresh_letters(source, 64, IMAGES, 104, number=1))

    def scores(kind: str) -> LetterScores:
        return letter_set(reader, (spoil(kind, batch) for batch in others)).against(fresh)

    return request.param, {kind: scores(kind) for kind in (*KINDS, SHUFFLED)}


def test_the_measures_order_spoiled_letters_rightly(spoiled: tuple[str, dict[str, LetterScores]]) -> None:
    level, rows = spoiled
    fresh = rows["fresh letters"]
    assert fresh.legibility >= 0.99 and abs(fresh.edges) < 0.5 and abs(fresh.moire) < 0.5
    assert rows[SHUFFLED].legibility < 0.05, "no letter is the one asked for"
    assert rows[SHUFFLED].letters_fd == pytest.approx(fresh.letters_fd, rel=1e-6), "the pictures are the same"
    fine = level == "letters-fine"
    alike = {"fresh letters"} | ({"jagged", "checkerboard"} if fine else set())  # on hatches `edges` alone tells
    for kind in KINDS:
        assert kind in alike or rows[kind].letters_fd > 1.01 * fresh.letters_fd, kind
    assert rows["blurred beyond reading"].legibility < 0.8 < 0.9 < rows["blurred"].legibility
    assert rows["blurred beyond reading"].letters_fd > 2 * rows["blurred"].letters_fd > 2 * rows["jagged"].letters_fd
    assert rows["blurred beyond reading"].precision < fresh.precision - 0.2
    assert min(rows["jagged"].edges, rows["checkerboard"].edges) > (0.5 if fine else 3), "too much energy at the edges"
    assert rows["blurred"].edges < -10 and rows["every second pixel"].edges < -1, "too little"
    if fine:
        assert rows["every second pixel"].moire > 1 + max(0, rows["blurred"].moire), "the hatches fold"


def test_folded_hatches_are_moire() -> None:
    """A grating of 0.34 cycles per pixel has no energy in the band; every second pixel of it folds to 0.16."""
    x = torch.cos(2 * torch.pi * 0.34 * torch.arange(64.0)).expand(1, 3, 64, 64)
    folded = torch.nn.functional.interpolate(x[..., ::2, ::2], scale_factor=2, mode="bicubic")
    shares = []
    for image in (x, folded):
        energy = BandEnergy()
        energy.update(image)
        shares.append(energy.shares()["moire"])
    assert shares[0] < 1e-3 and shares[1] > 0.5
    assert decibels({"moire": shares[1]}, {"moire": shares[1] / 10})["moire"] == pytest.approx(10)


def test_fresh_letters_do_not_depend_on_the_batch_and_differ_by_number() -> None:
    source = find_split("letters", "val")

    def pictures(batch: int, number: int = 0) -> tuple[Tensor, Tensor]:
        batches = list(fresh_letters(source, 32, 30, batch, number))
        return torch.cat([image for image, _ in batches]), torch.cat([label for _, label in batches])

    image, label = pictures(30)
    assert torch.equal(image, pictures(7)[0]) and label.tolist() == [i % 26 for i in range(30)]
    assert not torch.equal(image, pictures(30, number=1)[0])


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_a_reader_that_comes_with_the_project(level: str) -> None:
    reader = load_reader(level)
    assert weights_file(level).stat().st_size < 1_000_000
    for data in (level, f"{level}-unseen"):
        batches = fresh_letters(find_split(data, "val"), reader.side, 260, 130)
        assert letter_set(reader, batches).legibility >= 0.98, data


def test_a_reader_learns_is_written_and_is_the_same_again(tmp_path: Path) -> None:
    readers = [train_reader("letters", CPU, epochs=1, per_epoch=128) for _ in range(2)]
    save_reader(readers[0], tmp_path / "reader.safetensors")
    again = load_reader("letters", file=tmp_path / "reader.safetensors")
    for a, b, c in zip(*(reader.state_dict().values() for reader in (*readers, again)), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    untrained = Reader("letters")
    assert any(not torch.equal(a, b) for a, b in zip(again.parameters(), untrained.parameters(), strict=True))


def test_a_reader_is_trained_on_pictures_of_other_colours_that_stay_in_range() -> None:
    image, _ = next(fresh_letters(find_split("letters", "val"), 64, 8, 8))
    generator = torch.Generator().manual_seed(0)
    changed = spoil_for_training(image, generator)
    assert changed.shape == image.shape and changed.abs().max() <= 1
    assert (changed - image).abs().mean() > 0.02


# ------------------------------------------------------------------------------------------------ the command


def legibility(*words: str) -> int:
    return run_main("legibility", *words)


def test_samples_of_a_file_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = find_split("letters", "val")
    ((image, label),) = list(fresh_letters(source, 64, 52, 52, number=3))
    pixels = ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "a.npz", arr_0=pixels, arr_1=label.numpy())
    words = ("--samples", str(tmp_path / "a.npz"), "--images", "104", "--json", str(tmp_path / "a.json"))
    assert legibility(*words) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["samples"]["legibility"] >= 0.96 and set(found) == {"samples", "fresh letters"}
    assert "52 images of" in capsys.readouterr().out
    np.savez(tmp_path / "b.npz", arr_0=pixels, arr_1=np.roll(label.numpy(), 1))
    assert legibility("--samples", str(tmp_path / "b.npz"), "--images", "104", "--json", str(tmp_path / "b.json")) == 0
    assert json.loads((tmp_path / "b.json").read_text())["samples"]["legibility"] < 0.1


def test_samples_are_drawn_as_for_fid_unless_told() -> None:
    assert parsed("legibility").cfg == (FOR_FID.cfg,)
    assert parsed("legibility", "--cfg", "0,1.5,1.5").cfg == (0.0, 1.5)


def test_a_picture_shows_all_kinds(tmp_path: Path) -> None:
    assert legibility("--images", "52", "--picture", str(tmp_path / "a.png")) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 8 * 128 and picture.height > 9 * 128


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--student", "a", "--samples", "b"), "--student and --samples are measured one at a time"),
        (("--data", "photographs"), "--data photographs names no drawn pictures; give one of letters,"),
        (("--tokenizer", "a", "--picture", "b"), "--picture shows spoiled letters; omit --tokenizer, or --picture"),
        (("--student", "a", "--picture", "b"), "--picture of a student shows it at several guidances; give them"),
        (("--tokenizer", "a", "--cfg", "3"), "--cfg is for the samples that are drawn of a --student; omit it"),
        (("--student", "a", "--cfg", "1.5,-1"), "--cfg: -1 is less than 0"),
        (("--student", "a", "--cfg", "1.5,"), "--cfg: '1.5,' is not a list of numbers such as 0,1.5,4"),
        (("--images", "3"), "--images 3 are too few for precision and recall; give at least 4"),
        (("--reader", "missing.safetensors"), "there is no reader missing.safetensors; train one with"),
        (("--tokenizer", "missing"), "--tokenizer"),
    ],
)
def test_wrong_words_are_one_sentence(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert legibility(*words) == 2
    assert message in capsys.readouterr().err


def test_samples_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((8, 64, 64, 3), np.uint8))
    assert legibility("--samples", str(tmp_path / "a.npz")) == 2
    assert "has no labels" in capsys.readouterr().err
    np.savez(tmp_path / "b.npz", arr_0=np.zeros((8, 64, 64, 3), np.uint8), arr_1=np.full(8, 30))
    assert legibility("--samples", str(tmp_path / "b.npz"), "--images", "8") == 2
    assert "has the label 30, but letters has 26 classes" in capsys.readouterr().err


def test_another_readers_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from refocus_ext.errors import UsageError

    save_file({"head.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="does not hold the reader of letters"):
        load_reader("letters", file=tmp_path / "other.safetensors")
