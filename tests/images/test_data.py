"""Image lists, their checks, and the data order that survives resumes and changes of the number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from torch.utils.data import DataLoader

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images import checks, order
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey, StepBatches
from refocus_ext.images.sources import folder
from refocus_ext.images.sources import kinds as sources


def test_demo_photographs_are_real_files_one_class_each() -> None:
    photographs = sources.demo_photographs()
    assert len(photographs) >= 15 and {"astronaut", "coffee", "rocket"} <= set(photographs.classes)
    assert photographs.labels == tuple(range(len(photographs)))
    assert checks.check_images(photographs, 64, "refuse") is None
    assert {Crops(photographs, 64)._resized(index).size for index in range(len(photographs))} == {(72, 72)}


def test_image_folder_labels_follow_sorted_class_names(image_tree: Path) -> None:
    images = folder.image_folder(str(image_tree), "train")
    assert images.classes == ("cat", "dog") and images.labels == (0,) * 6 + (1,) * 6
    assert all(f"/{images.classes[label]}/" in path for path, label in zip(images.paths, images.labels, strict=True))


def test_missing_and_empty_folders_are_named(image_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        folder.image_folder("nowhere", "train")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match=r"has no train/ folder \(it holds nothing\)"):
        folder.image_folder(str(tmp_path / "bare"), "train")
    (tmp_path / "bare" / "train").mkdir()
    with pytest.raises(UsageError, match="has no class folders"):
        folder.image_folder(str(tmp_path / "bare"), "train")
    (image_tree / "train" / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no images"):
        folder.image_folder(str(image_tree), "train")


def test_a_text_file_named_jpg_is_named(image_tree: Path) -> None:
    (image_tree / "train" / "cat" / "note.jpg").write_text("not an image")
    with pytest.raises(UsageError, match=r"note\.jpg is not an image"):
        checks.check_images(folder.image_folder(str(image_tree), "train"), 64, "auto")


def test_small_images_are_refused_or_upsampled(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(image_tree / "train" / "cat" / "small", 1, size=(40, 90))
    images = folder.image_folder(str(image_tree), "train")
    with pytest.raises(UsageError, match=r"is 40x90 pixels, smaller than the 64 pixel crop"):
        checks.check_images(images, 64, "auto")
    assert "1 of 13 images" in str(checks.check_images(images, 64, "upsample"))
    assert Crops(images, 64)[SampleKey(0, 6)][0].shape == (3, 64, 64)
    monkeypatch.setattr(checks, "SMALL_DATA_SET", 12)  # a large data set: as VAR does
    assert "are upsampled" in str(checks.check_images(images, 64, "auto"))


def test_a_broken_image_is_replaced_the_same_way_every_time(image_tree: Path) -> None:
    path = image_tree / "train" / "cat" / "002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    crops = Crops(folder.image_folder(str(image_tree), "train"), 64)
    first, again, next_one = crops[SampleKey(0, 2)], crops[SampleKey(0, 2)], crops[SampleKey(0, 3)]
    assert first.broken == 2 and next_one.broken == -1 and first.label == next_one.label
    assert torch.equal(first.image, again.image) and torch.equal(first.image, next_one.image)


def test_nothing_but_broken_images_stops(image_tree: Path) -> None:
    for path in (image_tree / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunFailed, match=r"000\.jpg and the images after it cannot be decoded"):
        Crops(folder.image_folder(str(image_tree), "train"), 64)[SampleKey(0, 0)]


def test_crops_depend_on_seed_epoch_and_index_only(image_tree: Path) -> None:
    images = folder.image_folder(str(image_tree), "train")
    crops, again = Crops(images, 64, scale=1.5, seed=3), Crops(images, 64, scale=1.5, seed=3)
    torch.manual_seed(0)
    first = crops[SampleKey(1, 2)][0]
    torch.manual_seed(9)
    assert torch.equal(first, again[SampleKey(1, 2)][0])
    assert not torch.equal(first, crops[SampleKey(2, 2)][0])
    assert not torch.equal(first, Crops(images, 64, scale=1.5, seed=4)[SampleKey(1, 2)][0])


def test_flip_mirrors_half_of_the_crops(image_tree: Path) -> None:
    images = folder.image_folder(str(image_tree), "train")
    plain, flipped = Crops(images, 64, scale=1.0), Crops(images, 64, scale=1.0, hflip=True)
    square = list(range(12))
    count = 0
    for epoch in range(8):
        for i in square:
            a, b = plain[SampleKey(epoch, i)][0], flipped[SampleKey(epoch, i)][0]
            mirrored = torch.equal(a.flip(-1), b)
            assert mirrored or torch.equal(a, b)
            count += mirrored
    assert 30 < count < 66


def test_values_and_resize_follow_var(tmp_path: Path) -> None:
    """[-1,1], shorter side resized by Lanczos, centre crop for validation."""
    array = np.linspace(0, 255, 100 * 80, dtype=np.uint8).reshape(80, 100)
    (tmp_path / "val" / "c").mkdir(parents=True)
    Image.fromarray(array).convert("RGB").save(tmp_path / "val" / "c" / "a.png")
    crop, label, _ = Crops(folder.image_folder(str(tmp_path), "val"), 64, scale=1.125, random=False)[0]
    resized = Image.fromarray(array).convert("RGB").resize((90, 72), Image.Resampling.LANCZOS)
    expected = np.asarray(resized)[4:68, 13:77].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    assert label == 0 and np.allclose(crop.numpy(), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ order


def flat(batches: StepBatches) -> list[SampleKey]:
    return [key for batch in batches for key in batch]


def test_every_epoch_holds_every_image_once() -> None:
    keys = flat(StepBatches(10, 4, start=0, stop=5, seed=0))  # two epochs of ten
    for epoch in (0, 1):
        assert sorted(key.index for key in keys if key.epoch == epoch) == list(range(10))
    assert [k.index for k in keys[:10]] != [k.index for k in keys[10:]]


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_resume_goes_on_where_it_stopped(cut: int) -> None:
    whole = list(StepBatches(7, 3, start=0, stop=5, seed=1))
    parts = list(StepBatches(7, 3, start=0, stop=cut, seed=1)) + list(StepBatches(7, 3, start=cut, stop=5, seed=1))
    assert parts == whole


def test_processes_share_the_same_global_order() -> None:
    whole = list(StepBatches(9, 4, start=0, stop=6, seed=2))
    shares = [list(StepBatches(9, 4, start=0, stop=6, seed=2, rank=rank, world=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_micro_batches_cut_the_same_order() -> None:
    whole = flat(StepBatches(9, 8, start=0, stop=3, seed=2))
    micro = StepBatches(9, 8, start=0, stop=3, seed=2, accumulate=4)
    assert flat(micro) == whole and len(micro) == len(list(micro)) == 12


def test_indivisible_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch size of 5 does not divide over 2 processes"):
        StepBatches(9, 5, start=0, stop=1, seed=0, world=2)


def test_loader_processes_change_nothing(image_tree: Path) -> None:
    crops = Crops(folder.image_folder(str(image_tree), "train"), 64, seed=0)
    loaded = []
    for workers in (0, 2):
        batches = StepBatches(len(crops), 5, start=2, stop=5, seed=0)
        loaded.append([batch.image for batch in DataLoader(crops, batch_sampler=batches, num_workers=workers)])
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True))


def test_spread_is_even() -> None:
    assert order.spread(range(10), 20) == list(range(10))
    assert order.spread(range(10), 5) == [0, 2, 4, 6, 8]
