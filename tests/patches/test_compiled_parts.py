"""torch.compile of encoder, decoder and blocks, with a backend that needs no C++ compiler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import small_vae
from torch.utils._python_dispatch import TorchDispatchMode

from patches import Upstream
from patches.model_parts import compile_autoencoder, last_decoder_weight
from refocus_ext.engine.devices import uncompiled


class Convolutions(TorchDispatchMode):
    """Counts their backward passes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def compiled(upstream: Upstream) -> Iterator[Any]:
    vae = small_vae(upstream)
    compile_autoencoder(vae, backend="aot_eager")
    yield vae
    torch._dynamo.reset()


def test_the_gradient_of_the_last_layer_is_the_last_layers_alone(compiled: Any) -> None:
    """The adaptive weight of the critic asks for two of them a step; compiled code could only run its whole backward pass."""
    image = compiled.decoder(torch.randn(1, 8, 4, 4))
    with Convolutions() as last:
        torch.autograd.grad(image.square().mean(), last_decoder_weight(compiled), retain_graph=True)
    with Convolutions() as whole:
        image.mean().backward()
    assert last.count == 1 and whole.count > 5
    assert set(compiled.state_dict()) == set(copy.deepcopy(compiled).state_dict())


def test_a_copy_has_a_last_layer_of_its_own(compiled: Any) -> None:
    """Averaged weights are such a copy."""
    latent, average = torch.randn(1, 8, 4, 4), copy.deepcopy(compiled)
    before = average.decoder(latent)
    with torch.no_grad():
        last_decoder_weight(compiled).zero_()
    assert torch.equal(average.decoder(latent), before)


def test_few_calls_are_not_compiled(compiled: Any) -> None:
    """The result is the same, and nothing is compiled for another mode."""
    latent = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        first = compiled.decoder(latent)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs > 0
        with uncompiled():
            again = compiled.eval().decoder(torch.cat((latent, latent)))
    assert torch.allclose(again[:1], first, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
