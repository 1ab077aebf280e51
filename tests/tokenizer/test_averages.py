"""Averaged weights against the average written out, and across an interruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_vae
from torch import Tensor, nn

from patches import Focus, load_upstream
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import build_alias
from refocus_ext.tokenizer.averages import Averages, WeightAverage, decay_at


class Network(nn.Module):
    counter: Tensor
    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))

    def become(self, step: int) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.arange(3.0) + step)
            self.running.fill_(2.0 * step)
            self.counter.fill_(step)


def test_the_decay_grows_to_its_limit() -> None:
    """As latent diffusion's LitEma, whose first update is number 1; number 0 is a copy."""
    assert decay_at(0, 0.9) == 0.0
    assert decay_at(1, 0.9) == pytest.approx(2 / 11) and decay_at(28, 0.999) == pytest.approx(29 / 38)
    assert decay_at(89_000, 0.9999) < 0.9999 == decay_at(90_000, 0.9999)
    assert decay_at(10**6, 0.9) == 0.9


@pytest.mark.parametrize("interrupted", [None, 1, 4])
def test_weights_and_buffers_are_averaged_and_counters_copied(interrupted: int | None) -> None:
    network = Network()
    average = WeightAverage(network, 0.7)
    weight, running = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(8):
        network.become(step)
        average.update(network, step)
        kept = decay_at(step, 0.7)
        weight = kept * weight + (1 - kept) * (torch.arange(3.0) + step)
        running = kept * running + (1 - kept) * 2.0 * step
        if step == interrupted:
            state = average.state_dict()
            average = WeightAverage(Network(), 0.7)
            average.load_state_dict(state)
    torch.testing.assert_close(average.module.weight.detach().double(), weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(average.module.running.double(), running, rtol=1e-6, atol=1e-6)
    assert average.module.counter == 7 and network.weight[0] == 7, "the network itself is left alone"


@pytest.mark.parametrize("codebook", ["own", "shared"])
def test_both_tokenizers_have_averages_and_one_checkpoint(codebook: str) -> None:
    pyramid = FocusPyramid(image_size=64, states=3, rho_max=6.0)
    vae: Any = small_vae(load_upstream())
    Focus(pyramid).apply(vae)
    codes = dict(codes=64, code_dim=8) if codebook == "shared" else {}
    alias = build_alias(AliasGeometry.of(pyramid, codebook=codebook, width=16, **codes), vae, "cpu")
    averages = Averages(vae, alias, 0.5)
    assert averages.vae is not vae and averages.alias is not alias
    if codebook == "shared":
        assert averages.alias.embedding is averages.vae.quantize.embedding, "each copy has the codebook of its own side"
    with torch.no_grad():
        vae.quantize.embedding.weight.add_(1)
    averages.update(0, warm_autoencoder=0, alias_start=0)
    assert torch.equal(averages.vae.quantize.embedding.weight, vae.quantize.embedding.weight)
    assert set(averages.state_dict()) == {"ema", "alias_ema"}
    plain = Averages(vae, alias, 0.0)
    assert plain.vae is vae and plain.alias is alias and plain.state_dict() == {}


def test_each_average_begins_when_its_network_does() -> None:
    """Until then it is a copy: what a network was before its codebook was filled never enters the average."""
    pyramid = FocusPyramid(image_size=64, states=3, rho_max=6.0)
    vae: Any = small_vae(load_upstream())
    Focus(pyramid).apply(vae)
    alias = build_alias(AliasGeometry.of(pyramid, codebook="shared", width=16, codes=64, code_dim=8), vae, "cpu")
    averages = Averages(vae, alias, 0.9)
    table, patch = vae.quantize.embedding.weight, alias.patch.weight
    with torch.no_grad():
        for step in range(4):
            table.fill_(step)
            patch.fill_(step)
            averages.update(step, warm_autoencoder=1, alias_start=2)
            if step <= 1:
                assert torch.equal(averages.vae.quantize.embedding.weight, table)
            if step <= 2:
                assert torch.equal(averages.alias.patch.weight, patch)
    kept = decay_at(1, 0.9)
    assert averages.alias.patch.weight.mean().item() == pytest.approx(kept * 2 + (1 - kept) * 3)
