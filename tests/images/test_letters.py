"""Drawn letters as a source of images: what they depend on, what they look like, how commands find them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from refocus_ext.errors import UsageError
from refocus_ext.images.checks import check_images
from refocus_ext.images.crops import Crops
from refocus_ext.images.letters.drawing import HATCH, PALETTES
from refocus_ext.images.letters.fonts import SEEN, UNSEEN, matplotlib_fonts
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.kinds import find_images, find_split
from refocus_ext.images.sources.letters import LEVELS, Letters, is_letters
from refocus_ext.images.sources.parts import numbered_as
from refocus_ext.images.views import ViewCrops, ViewPlan
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options.presets import DRAWN, PRESETS
from refocus_ext.tokens.identity import _decoding


def pixels(data: str, index: int, size: int = 64, seed: int = 0, epoch: int = 0, split: str = "train") -> np.ndarray:
    return np.asarray(find_split(data, split).draw(index, size, seed, epoch), np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_a_picture_depends_on_its_seed_epoch_index_and_split_alone(level: str) -> None:
    first = pixels(level, 3)
    assert np.array_equal(first, pixels(level, 3)) and first.shape == (64, 64, 3)
    others = [
        pixels(level, 3, seed=1),
        pixels(level, 3, epoch=1),
        pixels(level, 29),
        pixels(level, 3, split="val"),
    ]
    assert all(not np.array_equal(first, other) for other in others)
    copy = pickle.loads(pickle.dumps(find_split(level, "train")))  # as a loader process gets it
    assert np.array_equal(first, np.asarray(copy.draw(3, 64, 0, 0), np.float32))


def test_labels_and_lengths() -> None:
    train, val = find_images("letters")
    assert train.classes == val.classes and "".join(train.classes) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert (len(train), len(val)) == (5200, 520)
    assert np.bincount([train.label(i) for i in range(len(train))]).tolist() == [200] * 26
    assert all(len(set(level.classes)) == 26 for level in LEVELS.values())


def test_pictures_have_the_two_colours_of_a_palette() -> None:
    for index in range(26):
        picture = pixels("letters", index).reshape(-1, 3)
        corner = pixels("letters", index)[0, 0]
        grounds = [palette for palette in PALETTES if np.abs(np.array(palette[0]) - corner).max() <= 2]
        assert len(grounds) >= 1, "the corner shows the ground"
        inks = [np.abs(picture - np.array(ink)).max(1).min() for _, ink in grounds]
        assert min(inks) < 40, "some pixel shows the ink"


def test_letters_touch_no_border() -> None:
    for index in range(0, 520, 7):
        picture = pixels("letters", index)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.abs(border - picture[0, 0]).max() < 12, find_split("letters", "train").name(index)


def test_a_picture_is_the_same_scene_at_every_size() -> None:
    small, large = pixels("letters", 5, 64), pixels("letters", 5, 128)
    assert np.abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - small).mean() < 6


def test_the_ground_of_fine_letters_is_hatched_in_its_band_and_folds_when_decimated() -> None:
    """Energy below the band is small in the picture and large once every second pixel is taken without a filter."""
    ratios = []
    for index in range(20):
        grey = pixels("letters-fine", index, 128).mean(2)
        grey -= grey.mean()
        spectrum = np.abs(np.fft.fft2(grey)) ** 2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        inside = (frequency > HATCH[0] - 0.03) & (frequency < HATCH[1] + 0.03)
        ratios.append(spectrum[inside].sum() / spectrum[frequency > 0.03].sum())
    assert np.mean(ratios) > 0.4
    pyramid = FocusPyramid(image_size=64, states=3, rho_max=6.0)
    for data, low, high in (("letters-fine", 0.1, 9.0), ("letters", 0.0, 0.1)):
        crops = Crops(find_split(data, "val"), 64, random=False)
        x = torch.stack([crops[i].image for i in range(8)])
        assert low < pyramid.alias(x, 1).abs().mean() < high, data


def test_unseen_fonts_and_folders_of_fonts(tmp_path: Path) -> None:
    seen, unseen = find_split("letters", "train"), find_split("letters-unseen", "train")
    assert isinstance(seen, Letters) and isinstance(unseen, Letters)
    assert len(seen.fonts) == 18 and len(unseen.fonts) == 4 and not set(seen.fonts) & set(unseen.fonts)
    assert not set(SEEN) & set(UNSEEN) and seen.identity() != unseen.identity()
    for path in matplotlib_fonts(SEEN[:2]):
        shutil.copy(path, tmp_path)
    own = find_split(f"letters:{tmp_path}", "val")
    assert isinstance(own, Letters) and len(own.fonts) == 2 and len(own) == 520
    identity, moved = own.identity(), tmp_path / "moved"
    moved.mkdir()
    for path in own.fonts:
        shutil.move(path, moved)
    assert find_split(f"letters:{moved}", "val").identity() == identity, "a folder of fonts may move"


def test_wrong_fonts_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        find_split(f"letters:{tmp_path / 'missing'}", "train")
    with pytest.raises(UsageError, match="has no fonts"):
        find_split(f"letters:{tmp_path}", "train")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(UsageError, match=r"broken.ttf cannot be read as a font"):
        find_split(f"letters:{tmp_path}", "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters").mkdir()
    with pytest.raises(UsageError, match="is also a path here"):
        find_split("letters", "train")
    assert not is_letters("./letters")


def test_training_draws_a_new_picture_every_epoch_and_validation_the_same() -> None:
    train, val = find_images("letters")
    crops = Crops(train, 64, seed=4)
    first, second = crops[SampleKey(0, 2)], crops[SampleKey(1, 2)]
    assert first.label == 0 and first.image.shape == (3, 64, 64) and not torch.equal(first.image, second.image)
    expected = np.asarray(train.draw(2, 64, 4, 1), np.float32).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(second.image.numpy(), expected)
    held_out = [Crops(val, 64, random=False, seed=seed)[2].image for seed in (0, 9)]
    assert torch.equal(*held_out), "validation does not depend on the run's seed"
    views = ViewCrops(train, 64, plan=ViewPlan(3, False, 4))
    shown, moved = views.all_views(2)
    assert moved == 0 and torch.equal(shown[1], views.render(2, 1).image) and torch.equal(shown[1], second.image)


def test_drawn_pictures_need_no_check_of_files_and_can_be_renumbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Letters, "open")  # it would draw thousands of pictures to read their headers
    monkeypatch.setattr(Letters, "__abstractmethods__", frozenset())
    train, _ = find_images("letters")
    assert _decoding(train) == {}
    assert check_images(train, 4096, "refuse") is None
    turned = numbered_as(train, tuple(reversed(train.classes)))
    assert turned.drawn and turned.label(0) == 25
    assert np.array_equal(np.asarray(turned.draw(0, 64, 0, 0)), np.asarray(train.draw(0, 64, 0, 0)))


def test_every_level_has_a_preset() -> None:
    assert set(DRAWN) == set(LEVELS) and set(DRAWN.values()) <= set(PRESETS)
