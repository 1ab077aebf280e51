"""Steps that are skipped on the device, and numbers that are read a step late."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from refocus_ext.engine.devices import DeviceKind, loss_scaler
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import GuardedStep, gradient_norm
from refocus_ext.engine.step_result import Pending, Scalars, StepResult, added

ALONE = World(0, 1, torch.device("cpu"))
NO_SCALER = loss_scaler(torch.float32, ALONE.device)


def network(fused: bool) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)


def gradients(layer: nn.Module, seed: int, factor: float = 1.0) -> Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    loss = factor * layer(x).square().mean()
    layer.zero_grad()
    loss.backward()
    return loss


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_leaves_no_trace(fused: bool) -> None:
    """Weights, moments and the count of steps are, to the bit, those of a run without it; a good one is a plain step."""
    plain, plain_optimizer = network(fused)
    guarded, optimizer = network(fused)
    step = GuardedStep(ALONE, NO_SCALER, optimizer)
    for seed, factor in ((1, 1.0), (2, math.nan), (3, math.inf), (4, 1.0)):
        loss = gradients(guarded, seed, factor)
        bad, skipped = step.step([loss], [gradient_norm(guarded, 1.0)])
        assert bool(bad) == bool(skipped) == (factor != 1.0)
        if factor == 1.0:
            gradients(plain, seed)
            gradient_norm(plain, 1.0)
            plain_optimizer.step()
    for ours, theirs in zip(guarded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        mine, his = optimizer.state[ours], plain_optimizer.state[theirs]
        assert mine.keys() == his.keys() and all(torch.equal(mine[name], his[name]) for name in mine)


def test_all_optimizers_step_or_none() -> None:
    (first, one), (second, two) = network(True), network(True)
    step = GuardedStep(ALONE, NO_SCALER, one, two)
    before = [parameter.clone() for parameter in (*first.parameters(), *second.parameters())]
    losses = [gradients(first, 1), gradients(second, 2, math.nan)]
    bad, skipped = step.step(losses, [gradient_norm(first, 1.0), gradient_norm(second, 1.0)])
    assert bad and skipped
    assert all(torch.equal(a, b) for a, b in zip(before, (*first.parameters(), *second.parameters()), strict=True))
    _, skipped = step.step(losses[:1], [gradient_norm(first, 1.0)], skip=torch.tensor(True))
    assert skipped


def test_an_overflow_of_fp16_lowers_the_scale_and_is_not_bad() -> None:
    layer, optimizer = network(True)
    scaler = loss_scaler(torch.float16, ALONE.device)
    step = GuardedStep(ALONE, scaler, optimizer)
    before, scales = layer.weight.clone(), []
    for factor in (1e38, 1.0):  # the first overflows once it is scaled
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
        layer.zero_grad()
        loss = factor * layer(x).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        bad, skipped = step.step([torch.tensor(1.0)], [gradient_norm(layer, 1.0)])
        scales.append(scaler.get_scale())
        assert not bad and bool(skipped) == (factor != 1.0) == torch.equal(layer.weight, before)
    assert scales == [2.0**15, 2.0**15]


class Behind(DeviceKind):
    """A device that has not finished when the host asks: a copy is a snapshot, and reading one is counted."""

    def __init__(self) -> None:
        self.waits = 0

    def fetch(self, tensor: Tensor):  # type: ignore[no-untyped-def]
        copy = tensor.clone()

        def wait() -> Tensor:
            self.waits += 1
            return copy

        return wait


def test_numbers_are_those_of_their_step_however_late_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = Behind()
    monkeypatch.setattr("refocus_ext.engine.step_result.kind_of", lambda _: behind)
    loss = torch.tensor(2.5)
    pending = Pending(7, StepResult({"loss": loss, "lr": 0.1, "norm": torch.tensor(3.0)}, loss > 3), [0.0, 1.0], ALONE)
    loss.fill_(100.0)
    assert behind.waits == 0
    step, values, bad, flags = pending.read()
    assert (step, values, bad, flags) == (7, {"loss": 2.5, "lr": 0.1, "norm": 3.0}, False, [0.0, 1.0])
    assert list(values) == ["loss", "lr", "norm"] and behind.waits == 1


def test_terms_of_micro_batches_are_averaged() -> None:
    total: Scalars = {}
    for value in (1.0, 2.0, 6.0):
        added(total, {"loss": torch.tensor(value, requires_grad=True)}, 3)
    assert float(total["loss"]) == pytest.approx(3.0) and not total["loss"].requires_grad  # type: ignore[union-attr]
