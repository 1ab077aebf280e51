"""The critic of a run: when it takes part, how its term is weighted, and that a bad step changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from refocus_ext.engine.distributed import World
from refocus_ext.tokenizer.losses.critic import Critic, NoCritic
from refocus_ext.tokenizer.recipe import CriticRecipe

ALONE = World(0, 1, torch.device("cpu"))
GOES, SKIPPED = torch.tensor(False), torch.tensor(True)


def critic(dtype: torch.dtype = torch.float32, **changes: float) -> Critic:
    torch.manual_seed(0)
    recipe = CriticRecipe(**({"weight": 0.4, "start": 0.5, "warmup": 4, "floor": 0.0} | changes))  # type: ignore[arg-type]
    return Critic(recipe, 10, 32, ALONE, lr=1e-3, clip=1.0, dtype=dtype, betas=(0.5, 0.9))


def images(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_begins_at_its_share_of_the_steps() -> None:
    assert [critic().active(step) for step in (0, 4, 5, 9)] == [False, False, True, True]
    assert not NoCritic().active(9) and NoCritic().state_dict() == {}


def test_the_term_has_the_gradient_of_the_other_losses_at_the_last_layer() -> None:
    """Times its weight and the share of the warm-up: 1/4 at its first step, all from its fourth on."""
    part, layer = critic(), nn.Conv2d(3, 3, 1)
    for step, share in ((5, 0.25), (6, 0.5), (9, 1.0)):
        image = layer(images(1))
        other = (image - images(2)).square().mean()
        term, shown = part.generator_term(step, image, other, layer.weight)
        (ours,) = torch.autograd.grad(term, layer.weight, retain_graph=True)
        (theirs,) = torch.autograd.grad(other, layer.weight)
        assert ours.norm() == pytest.approx(0.4 * share * theirs.norm().item(), rel=1e-4)
        assert set(shown) == {"gan", "gan_weight"} and not any(value.requires_grad for value in shown.values())


def test_micro_batches_make_the_step_of_their_batch() -> None:
    whole, parts = critic(), critic()
    real, fake = images(3, 4), images(4, 4)
    one = whole.train_step([real], [fake], 0.5, GOES)
    two = parts.train_step(list(real.chunk(2)), list(fake.chunk(2)), 0.5, GOES)
    assert set(one) == set(two) and float(one["critic_grad_norm"]) > 0
    assert all(float(one[name]) == pytest.approx(float(two[name]), rel=1e-4) for name in one)
    assert whole.optimizer.param_groups[0]["lr"] == 0.5e-3
    for a, b in zip(whole.adversary.parameters(), parts.adversary.parameters(), strict=True):
        assert (a - b).abs().mean() < 1e-6, "Adam's step is 5e-4; rounding moves it where a gradient is near 0"


def test_a_step_that_is_not_finite_changes_nothing_and_says_zero() -> None:
    part = critic()
    before = [parameter.clone() for parameter in part.adversary.parameters()]
    values = part.train_step([images(5)], [images(6) * torch.nan], 1.0, GOES)
    part.train_step([images(5)], [images(6)], 1.0, SKIPPED)  # the tokenizer's own step was not finite
    assert values["critic_grad_norm"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, part.adversary.parameters(), strict=True))


def test_its_checkpoint_goes_on_to_the_bit() -> None:
    whole, begun = critic(), critic()
    steps = [([images(seed)], [images(seed + 10)], 1.0, GOES) for seed in range(3)]
    for step in steps:
        whole.train_step(*step)
    begun.train_step(*steps[0])
    resumed = critic()
    resumed.load_state_dict(begun.state_dict())
    for step in steps[1:]:
        resumed.train_step(*step)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.adversary.parameters(), resumed.adversary.parameters(), strict=True)
    )


def test_fp16_has_a_scaler_of_its_own() -> None:
    """It is lowered until the gradients fit; the step that then happens is that of fp32."""
    moved = []
    for dtype in (torch.float32, torch.float16):
        part = critic(dtype)
        before = [parameter.clone() for parameter in part.adversary.parameters()]
        norms = iter(float(part.train_step([images(7)], [images(8)], 1.0, GOES)["critic_grad_norm"]) for _ in range(20))
        assert next(norm for norm in norms if norm) > 0
        moved.append([(a - b).sign() for a, b in zip(part.adversary.parameters(), before, strict=True)])
        assert ("critic_scaler" in part.state_dict()) == (dtype == torch.float16)
    same = torch.cat([(a == b).float().flatten() for a, b in zip(*moved, strict=True)])
    assert same.mean() > 0.9
