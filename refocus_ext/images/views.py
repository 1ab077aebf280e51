"""Training views: the fixed crops of an image, and which of them an epoch shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refocus_ext.images.crops import Crops, Sample
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import Stream, stream_seed


@dataclass(frozen=True)
class ViewPlan:
    """The fixed views of every image: `crops` random crops, each of them mirrored as well if `hflip`.

    View v is crop number v // (1 + hflip), mirrored if v % (1 + hflip). With `crops` 0 the number of views is
    unlimited and every epoch shows new crops, which a token cache cannot hold.

    Raises:
        ValueError: a negative number of crops.
    """

    crops: int
    hflip: bool
    seed: int

    def __post_init__(self) -> None:
        if self.crops < 0:
            raise ValueError(f"crops must be at least 1, or 0 for fresh crops in each epoch, got {self.crops}")

    @property
    def views(self) -> int:
        """Views of an image; 0 stands for unlimited."""
        return self.crops * (1 + self.hflip)

    def view_of(self, key: SampleKey) -> int:
        """The view that an epoch shows of an image: each view once in `views` consecutive epochs, starting at a random offset.

        Without the offset all images would show their first view in the same epoch.
        """
        if not self.crops:
            mirrored = self.hflip and stream_seed(self.seed, Stream.MIRROR, key.epoch, key.index) % 2
            return key.epoch * (1 + self.hflip) + mirrored
        return (stream_seed(self.seed, Stream.VIEW_OFFSET, key.index) + key.epoch) % self.views

    def crop_of(self, view: int) -> tuple[int, bool]:
        """(number of the crop, whether it is mirrored)."""
        number, mirrored = divmod(view, 1 + self.hflip)
        return number, bool(mirrored)


class ViewCrops(Crops):
    """The views as images, by `SampleKey`: training without a token cache.

    The pixels of a view are those of `Crops` for epoch = crop number, so that they depend only on (seed, crop number, index).
    """

    def __init__(self, images: ImageSource, size: int, *, scale: float = 1.125, plan: ViewPlan) -> None:
        super().__init__(images, size, scale=scale, seed=plan.seed)
        self.plan = plan

    def __getitem__(self, key: SampleKey | int) -> Sample:
        assert isinstance(key, SampleKey)
        return self.render(key.index, self.plan.view_of(key))

    def render(self, index: int, view: int) -> Sample:
        """One view of an image."""
        number, mirrored = self.plan.crop_of(view)
        sample = super().__getitem__(SampleKey(number, index))
        return sample._replace(image=sample.image.flip(-1)) if mirrored else sample

    def all_views(self, index: int) -> tuple[Tensor, int]:
        """All views of an image, decoded once.

        Returns:
            (V,3,size,size) in [-1,1], and the offset to the image that these are views of: 0, or more if this one
            cannot be decoded.
        """
        samples, other = self.of(index, [SampleKey(number, index) for number in range(self.plan.crops)])
        crops = [sample.image for sample in samples]
        views = [view for crop in crops for view in ((crop, crop.flip(-1)) if self.plan.hflip else (crop,))]
        return torch.stack(views), (other - index) % len(self.images)
