"""Which view an epoch shows, and that its pixels are those of `Crops`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.folder import ImageList, image_folder
from refocus_ext.images.views import ViewCrops, ViewPlan


@pytest.fixture
def images(image_tree: Path) -> ImageList:
    return image_folder(str(image_tree), "train")


@pytest.mark.parametrize(("crops", "hflip"), [(1, False), (3, False), (3, True)])
def test_any_epochs_in_a_row_show_every_view_once(crops: int, hflip: bool) -> None:
    plan = ViewPlan(crops, hflip, seed=5)
    assert plan.views == crops * (2 if hflip else 1)
    for index in range(20):
        for first in (0, 7):
            epochs = range(first, first + plan.views)
            assert sorted(plan.view_of(SampleKey(epoch, index)) for epoch in epochs) == list(range(plan.views))


def test_images_begin_with_different_views_that_the_seed_decides() -> None:
    begin = lambda seed: [ViewPlan(4, True, seed).view_of(SampleKey(0, index)) for index in range(400)]  # noqa: E731
    assert begin(0) == begin(0) != begin(1)
    assert min(begin(0).count(view) for view in range(8)) > 25  # 50 if perfectly even


def test_without_a_fixed_number_every_epoch_shows_a_fresh_crop_and_half_are_mirrored() -> None:
    plan = ViewPlan(0, True, seed=1)
    shown = [plan.crop_of(plan.view_of(SampleKey(epoch, 3))) for epoch in range(200)]
    assert [number for number, _ in shown] == list(range(200))
    assert 70 < sum(mirrored for _, mirrored in shown) < 130
    assert ViewPlan(0, False, seed=1).view_of(SampleKey(9, 3)) == 9
    with pytest.raises(ValueError, match="crops must be at least 1, or 0"):
        ViewPlan(-1, False, 0)


def test_views_are_the_crops_and_their_mirror_images(images: ImageList) -> None:
    plan = ViewPlan(2, True, seed=3)
    views, crops = ViewCrops(images, 64, scale=1.5, plan=plan), Crops(images, 64, scale=1.5, seed=3)
    for view, number in enumerate((0, 0, 1, 1)):
        sample, crop = views.render(4, view), crops[SampleKey(number, 4)]
        assert torch.equal(sample.image, crop.image.flip(-1) if view % 2 else crop.image)
        assert not torch.equal(crop.image, crop.image.flip(-1)) and sample.label == crop.label
    for epoch in range(4):
        key = SampleKey(epoch, 4)
        assert torch.equal(views[key].image, views.render(4, plan.view_of(key)).image)
    assert len(views) == 12 and views.broken_limit == 3 and not views.known_broken


def test_all_views_at_once_are_the_same(images: ImageList) -> None:
    path = Path(images.paths[5])  # the last cat: a dog stands in for it
    path.write_bytes(path.read_bytes()[:200])
    views = ViewCrops(images, 64, scale=1.5, plan=ViewPlan(2, True, seed=3))
    for index, further, label in ((0, 0, 0), (5, 1, 1)):
        all_V3HW, stood_in = views.all_views(index)
        singles = [views.render(index, view) for view in range(4)]
        assert torch.equal(all_V3HW, torch.stack([sample.image for sample in singles])) and stood_in == further
        assert {sample.label for sample in singles} == {label}
        assert {sample.broken for sample in singles} == {index if further else -1}
