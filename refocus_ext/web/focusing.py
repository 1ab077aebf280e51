"""An image while it is sampled: what is seen after each scale, and what the tokens of that scale changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus_ext.counting import counted
from refocus_ext.sampling.jobs import guidance_of, ready
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.sampler import Prefixes, sample_images
from refocus_ext.sampling.student import Student
from refocus_ext.web.figures import Figure, figures, shown, shown_change


@dataclass(frozen=True)
class Focusing:
    """An image (3,H,W) in [0,1] after each scale so far; `sides` are those of all token maps."""

    sides: Sequence[int]
    prefixes: Sequence[Tensor]

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return sum(side * side for side in self.sides[: len(self.prefixes)])

    @property
    def changes(self) -> list[Tensor]:
        """What the tokens of each scale changed in the decoded image; for the first one what differs from mid-grey."""
        befores = (torch.full_like(self.prefixes[0], 0.5), *self.prefixes)
        return [after - before for before, after in zip(befores, self.prefixes, strict=False)]

    def html(self) -> str:
        """The image so far, its prefixes, and the changes."""
        total, each = 0, []
        for side in self.sides[: len(self.prefixes)]:
            total += side * side
            each.append((f"{side}x{side}", f"{total} of {sum(s * s for s in self.sides)} tokens"))
        drawn = [Figure(shown(image), *words) for image, words in zip(self.prefixes, each, strict=True)]
        now = f"after {len(drawn)} of {len(self.sides)} scales, {counted(self.tokens, 'token')}"
        changed = []
        for change, (name, _) in zip(self.changes, each, strict=True):
            picture, gain, rms = shown_change(change)
            changed.append(Figure(picture, name, f"x {gain:.1f}, RMS {rms:.1f}"))
        return (
            figures([Figure(drawn[-1].picture, now)], kind="one")
            + figures(drawn, "Prefixes", "The image decoded from the tokens up to each scale.")
            + figures(
                changed,
                "What each scale changed",
                "The difference to the picture before it (of the first one to mid-grey), times the factor below it; grey is no "
                "change. RMS: its size on the scale of 0 to 255.",
            )
        )


class Told(Prefixes):
    """A `Watch` that reports the image after every scale."""

    def __init__(self, student: Student, tell: Callable[[Focusing], None]) -> None:
        super().__init__(student)
        self.sides, self.tell = student.geometry.patch_nums, tell

    def __call__(self, scale: int, f_hat: Tensor) -> None:
        super().__call__(scale, f_hat)
        self.tell(Focusing(self.sides, [image[0].cpu() for image in self.images]))


def focus(student: Student, label: int, options: SampleOptions, tell: Callable[[Focusing], None]) -> Tensor:
    """Draws image 0 of the options' seed, (3,H,W) in [0,1], and tells how it looks after each scale.

    With equal options it is the image that `bash run.sh sample` draws first.
    """
    with ready(student, options):
        watch = Told(student, tell)
        guidance = guidance_of(student, options)
        return sample_images(student, [label], seed=options.seed, guidance=guidance, watch=watch)[0].cpu()
