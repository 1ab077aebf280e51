"""DiffAug: each image has its own changes, which gradients pass, and which are off unless they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refocus_ext.tokenizer.losses.adversarial import Adversary
from refocus_ext.tokenizer.losses.diffaug import cutout, diffaug, recoloured, translated


def batch(count: int = 4, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("change", [recoloured, translated, cutout, diffaug])
def test_it_is_differentiable_and_follows_the_seed(change: Callable[[Tensor], Tensor]) -> None:
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return change(x)

    x = batch(2, 8, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(seeded, (x,))
    assert seeded(x).shape == x.shape and torch.equal(seeded(x), seeded(x))
    torch.manual_seed(4)
    assert not torch.equal(change(x), seeded(x))


def test_equal_images_are_changed_differently() -> None:
    torch.manual_seed(0)
    same = batch(1).expand(6, -1, -1, -1)
    for change in (recoloured, translated, cutout):
        assert len({tuple(image.flatten().tolist()) for image in change(same)}) > 3


def test_colour_keeps_to_its_ranges() -> None:
    """A grey image keeps being grey, its mean moves by at most 0.5, its contrast by at most half."""
    torch.manual_seed(0)
    grey = batch(200)[:, :1].expand(-1, 3, -1, -1)
    changed = recoloured(grey)
    assert torch.allclose(changed[:, 0], changed[:, 2], atol=1e-5)
    moved = changed.mean((1, 2, 3)) - grey.mean((1, 2, 3))
    assert moved.abs().max() <= 0.5 and moved.min() < -0.4 and moved.max() > 0.4
    contrast = changed.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert 0.5 <= contrast.min() < 0.6 and 1.4 < contrast.max() <= 1.5 + 1e-5


def test_translation_shifts_by_up_to_an_eighth_and_fills_with_zero() -> None:
    torch.manual_seed(0)
    x = batch(64) + 3  # nowhere 0
    shifts = set()
    for image, moved in zip(x, translated(x), strict=True):
        rows, columns = (moved[0] != 0).any(1).nonzero().flatten(), (moved[0] != 0).any(0).nonzero().flatten()
        found = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.equal(
                moved[:, max(0, dy) : 32 + min(0, dy), max(0, dx) : 32 + min(0, dx)],
                image[:, max(0, -dy) : 32 + min(0, -dy), max(0, -dx) : 32 + min(0, -dx)],
            )
        ]
        ((dy, dx),) = found
        assert len(rows) == 32 - abs(dy) and len(columns) == 32 - abs(dx)
        shifts.add((dy, dx))
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == set(range(-4, 5))


def test_the_hole_is_a_square_of_a_fifth_of_a_side() -> None:
    torch.manual_seed(0)
    x = batch(64) + 3
    cut = cutout(x)
    holes = (cut == 0).all(1)
    assert torch.equal(cut.masked_fill(holes.unsqueeze(1), 0), x.masked_fill(holes.unsqueeze(1), 0))
    heights, widths = (holes.any(axis).sum(1) for axis in (2, 1))
    assert torch.equal(holes.sum((1, 2)), heights * widths), "a rectangle"
    assert heights.max() == widths.max() == 6 and heights.min() >= 3, "of which the border cuts off half at most"


def test_off_it_is_the_identity() -> None:
    """No random number is drawn, and the losses are those of the bare discriminator."""
    torch.manual_seed(0)
    plain, augmenting = Adversary(32, width=8), Adversary(32, width=8, augments=True)
    augmenting.load_state_dict(plain.state_dict())
    fake, random = batch().requires_grad_(), torch.get_rng_state()
    assert torch.equal(plain.generator_loss(fake), -plain.discriminator(fake).mean())
    plain(batch(), -batch())
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.equal(augmenting.generator_loss(fake), plain.generator_loss(fake))


def test_real_and_reconstructed_images_are_both_augmented() -> None:
    """Their changes are drawn independently of each other."""
    torch.manual_seed(0)
    part = Adversary(32, width=8, augments=True)
    seen: list[Tensor] = []
    part.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = batch()
    part(x, x)
    real, fake = seen[0].chunk(2)
    assert not torch.equal(real, x) and not torch.equal(fake, x) and not torch.equal(real, fake)


def test_balanced_consistency_adds_the_difference_of_the_logits() -> None:
    """Between an image as the discriminator sees it and the same one changed by DiffAug, real and reconstructed."""
    torch.manual_seed(0)
    plain, consistent = Adversary(32, width=8), Adversary(32, width=8, bcr=4.0)
    consistent.load_state_dict(plain.state_dict())
    real, fake = batch(), -batch()
    hinge, terms = plain(real, fake)
    assert "bcr" not in terms
    torch.manual_seed(1)
    loss, terms = consistent(real, fake)
    torch.manual_seed(1)
    both = torch.cat((real, fake))
    difference = (plain.discriminator(diffaug(both)) - plain.discriminator(both)).square().mean()
    assert terms["bcr"] > 0 and torch.allclose(terms["bcr"], difference.detach())
    assert torch.allclose(loss, hinge + 4 * difference)


def test_the_generators_gradient_passes_the_augmentation() -> None:
    torch.manual_seed(0)
    fake = batch().requires_grad_()
    Adversary(32, width=8, augments=True).generator_loss(fake).backward()
    assert fake.grad is not None and (fake.grad.flatten(1).abs().sum(1) > 0).all()
