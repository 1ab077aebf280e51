"""The adversarial loss: formulas by hand, gradients that stay on their side, images that do not see each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as tdist

from refocus_ext.tokenizer.losses import adversarial
from refocus_ext.tokenizer.losses.adversarial import Adversary, LeCam, PatchDiscriminator, adaptive_weight, layers_for


def adversary(size: int = 32, lecam: float = 0.0, seed: int = 0) -> Adversary:
    torch.manual_seed(seed)
    return Adversary(size, lecam=lecam, width=8)


def pair(size: int = 32, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    real, fake = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return real, fake


# ------------------------------------------------------------------------------------------------ discriminator


@pytest.mark.parametrize(("size", "layers", "logits"), [(16, 1, 6), (32, 2, 6), (48, 2, 10), (64, 3, 6), (256, 3, 30)])
def test_depth_follows_the_image_size(size: int, layers: int, logits: int) -> None:
    assert layers_for(size) == layers
    discriminator = PatchDiscriminator(layers, width=8)
    assert discriminator(torch.zeros(1, 3, size, size)).shape == (1, 1, logits, logits)


def test_an_image_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 px, got 15"):
        Adversary(15)


def test_images_do_not_see_each_other() -> None:
    real, _ = pair()
    discriminator = adversary().discriminator
    alone = torch.cat([discriminator(image[None]) for image in real])
    assert torch.allclose(discriminator(real), alone, atol=1e-5)
    assert not list(discriminator.buffers()), "a forward must leave nothing behind"


def test_weights_start_as_pix2pix_has_them() -> None:
    torch.manual_seed(0)
    convolutions = [m for m in Adversary(64).modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.weight.std().item() == pytest.approx(0.02, rel=0.1) for conv in convolutions)


def test_a_few_steps_tell_flat_images_from_rough_ones() -> None:
    real, _ = pair()
    fake = torch.zeros_like(real)
    critic = adversary()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss, _ = critic(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.2) and losses[-1] < 0.2
    assert critic.generator_loss(fake) > 0 > critic.generator_loss(real)


# ------------------------------------------------------------------------------------------------ losses


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # real: 0, 0.5, 2 -> 2.5/3; fake: 0, 1, 2 -> 3/3
    assert adversarial.hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 1))
    assert adversarial.hinge_generator_loss(fake).item() == pytest.approx(2 / 3)


def test_terms_are_what_the_loss_is_made_of() -> None:
    real, fake = pair()
    critic = adversary(lecam=0.3)
    logits = [critic.discriminator(images).detach() for images in (real, fake)]
    loss, terms = critic.discriminator_loss(real, fake)
    assert set(terms) == {"critic", "logits_real", "logits_fake", "lecam"}
    assert not any(term.requires_grad for term in terms.values())
    assert torch.allclose(terms["critic"], adversarial.hinge_discriminator_loss(*logits), atol=1e-6)
    assert torch.allclose(terms["logits_real"], logits[0].mean(), atol=1e-6)
    assert torch.allclose(terms["logits_fake"], logits[1].mean(), atol=1e-6)
    assert torch.allclose(loss, terms["critic"] + 0.3 * terms["lecam"])
    assert "lecam" not in adversary()(real, fake)[1]


def test_gradients_stay_on_their_side() -> None:
    real, fake = pair()
    fake.requires_grad_()
    critic = adversary()
    critic.generator_loss(fake).backward()
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    assert fake.grad is not None
    expected = torch.autograd.grad(-critic.discriminator(fake).mean(), fake)[0]
    assert expected.any() and torch.allclose(fake.grad, expected)
    fake.grad = None
    critic.discriminator_loss(real, fake)[0].backward()
    assert fake.grad is None
    assert all(p.grad is not None and p.grad.any() for p in critic.discriminator.parameters())


# ------------------------------------------------------------------------------------------------ adaptive weight


def linear_losses(rec: list[float], adv: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Two losses whose gradients at `weight` are the given vectors."""
    weight = torch.zeros(2, requires_grad=True)
    return (weight * torch.tensor(rec)).sum(), (weight * torch.tensor(adv)).sum(), weight


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    rec, adv, weight = linear_losses([3.0, 4.0], [0.0, 2.0])
    ratio = adaptive_weight(rec, adv, weight)
    assert ratio.item() == pytest.approx(5 / 2)
    assert ratio.shape == () and not ratio.requires_grad and weight.grad is None
    (rec + ratio * adv).backward()  # both graphs are still there
    assert weight.grad is not None and weight.grad.tolist() == pytest.approx([3, 4 + 2.5 * 2])


@pytest.mark.parametrize(
    ("rec", "adv", "expected"),
    [([1e-3, 0.0], [1.0, 0.0], 0.1), ([500.0, 0.0], [1.0, 0.0], 50), ([1.0, 0.0], [0.0, 0.0], 50), ([0.0, 0.0], [0.0, 0.0], 0.1)],
)  # fmt: skip
def test_adaptive_weight_keeps_within_floor_and_ceiling(rec: list[float], adv: list[float], expected: float) -> None:
    assert adaptive_weight(*linear_losses(rec, adv), floor=0.1, ceiling=50).item() == pytest.approx(expected)


def test_adaptive_weight_balances_a_decoder() -> None:
    """After weighting, both losses pull equally at the last layer."""
    real, latent = pair()
    critic = adversary()
    last = nn.Conv2d(3, 3, 3, padding=1)
    decoded = last(latent)
    rec, adv = (decoded - real).square().mean(), critic.generator_loss(decoded)
    weight = adaptive_weight(rec, adv, last.weight)
    norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (rec, weight * adv)]
    assert norms[0] > 0 and torch.allclose(norms[0], norms[1], rtol=1e-4)


# ------------------------------------------------------------------------------------------------ LeCAM


def test_lecam_by_hand() -> None:
    lecam = LeCam()
    lecam.update(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0]))
    assert lecam.means.tolist() == [2, -0.5], "the first means are those of the first batch, not pulled to 0"
    # real: (2.5, 0)^2 against -0.5; fake: 2 - (-2, 3) = (4, 0)
    penalty = lecam(torch.tensor([2.0, -1.0]), torch.tensor([-2.0, 3.0]))
    assert penalty.item() == pytest.approx(2.5**2 / 2 + 4**2 / 2)


def test_lecam_means_become_moving_averages() -> None:
    lecam = LeCam(decay=0.75)
    for value in (1.0, 2.0, 3.0, 4.0):
        lecam.update(torch.tensor([value]), torch.tensor([-value]))
    assert lecam.means[0].item() == pytest.approx(2.5), "a plain mean for the first 1 / (1 - decay) updates"
    lecam.update(torch.tensor([10.0]), torch.tensor([-10.0]))
    assert lecam.means.tolist() == pytest.approx([0.75 * 2.5 + 2.5, -(0.75 * 2.5 + 2.5)])


def test_lecam_survives_an_overflow() -> None:
    lecam = LeCam()
    lecam.update(torch.tensor([1.0]), torch.tensor([-1.0]))
    lecam.update(torch.tensor([float("inf")]), torch.tensor([float("nan")]))
    assert lecam.means.tolist() == [1, -1]


def test_lecam_travels_in_the_state_dict_and_only_training_moves_it() -> None:
    real, fake = pair()
    critic, other = adversary(lecam=0.1), adversary(lecam=0.1, seed=1)
    critic(real, fake)
    assert critic.lecam.means.any() and critic.lecam.updates == 1
    other.load_state_dict(critic.state_dict(), strict=True)
    before = other.eval().lecam.means.clone()
    assert torch.equal(before, critic.lecam.means)
    other(0.1 * real, 0.1 * fake)
    assert torch.equal(other.lecam.means, before)
    other.train()(0.1 * real, 0.1 * fake)
    assert not torch.equal(other.lecam.means, before)
    assert critic.state_dict().keys() == adversary().state_dict().keys(), "whether LeCAM is on or off"


def test_lecam_means_are_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes; the other one's logits are higher by 2."""
    monkeypatch.setattr(tdist, "is_initialized", lambda: True)
    monkeypatch.setattr(tdist, "get_world_size", lambda: 2)
    monkeypatch.setattr(tdist, "all_reduce", lambda t: t.add_(t.clone() + 2))
    lecam = LeCam()
    lecam.update(torch.tensor([1.0]), torch.tensor([-1.0]))
    assert lecam.means.tolist() == [2, 0]


# ------------------------------------------------------------------------------------------------ DistributedDataParallel


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    tdist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    tdist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_the_wrapped_adversary_steps_like_the_bare_one() -> None:
    """Generator's loss, discriminator's loss and again, as a training step calls them."""
    real, fake = pair()
    bare = adversary(lecam=0.1)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(bare))
    for critic, step in ((bare, bare), (wrapped.module, wrapped)):
        image = fake.clone().requires_grad_()
        for _ in range(2):
            critic.generator_loss(image).backward()
            loss, _ = step(real, image)
            loss.backward()
    pairs = list(zip(bare.parameters(), wrapped.module.parameters(), strict=True))
    assert all(a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad) for a, b in pairs)
    assert torch.allclose(bare.lecam.means, wrapped.module.lecam.means)
