"""Passes counted on fake tensors: by hand, against real ones, and for a GPU that is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_vae
from saved_tensors import saved_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from patches import Upstream
from patches.model_parts import decoder_of, encoder_of
from refocus_ext.engine.memory.pass_cost import Input, PassCost, pass_cost

CUDA = torch.device("cuda")


def saved_bytes(module: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """What a real pass on the CPU keeps, without the module's weights."""
    half = dtype != torch.float32
    with saved_tensors(module.parameters()) as kept, torch.autocast("cpu", dtype=dtype if half else None, enabled=half):
        module(*inputs)
    return sum(kept.values())


def test_a_convolution_by_hand() -> None:
    cost = pass_cost(nn.Conv2d(3, 8, 3, padding=1), Input((3, 16, 16)))
    assert cost == PassCost(2 * 3 * 8 * 9 * 256, saved_bytes=4 * 3 * 256, fixed_bytes=0, largest_bytes=4 * 3 * 256)


def test_a_cast_weight_is_kept_once_for_any_number_of_images() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    cost = pass_cost(layer, Input((3, 16, 16), grad=True), dtype=torch.bfloat16)
    assert cost.saved_bytes == 2 * 3 * 256 and cost.fixed_bytes == 2 * layer.weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_as_a_real_pass_keeps_it(upstream: Upstream, dtype: torch.dtype) -> None:
    vae: Any = small_vae(upstream)
    for module, shape in ((encoder_of(vae), (3, 64, 64)), (decoder_of(vae), (8, 4, 4))):
        cost = pass_cost(module, Input(shape, grad=True), dtype=dtype)
        measured = saved_bytes(module, torch.rand(2, *shape, requires_grad=True), dtype=dtype)
        assert 2 * cost.saved_bytes + cost.fixed_bytes == pytest.approx(measured, rel=1e-3)


def test_autocast_follows_the_rules_of_the_device() -> None:
    """CUDA's normalizes in fp32, a CPU's does not; neither GPU nor CUDA is needed to count it."""
    layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8))
    image, cells = Input((8, 16, 16)), 8 * 16 * 16
    on_cpu, on_cuda = (pass_cost(layers, image, device=torch.device(d), dtype=torch.bfloat16) for d in ("cpu", "cuda"))
    assert on_cuda.saved_bytes - on_cpu.saved_bytes == pytest.approx(2 * cells, rel=0.02)
    assert pass_cost(layers, image, device=CUDA).saved_bytes == pass_cost(layers, image).saved_bytes
    assert on_cuda.flops == on_cpu.flops


@pytest.mark.parametrize("layout", [False, True])
def test_a_vqvae_keeps_four_fifths_on_cuda(upstream: Upstream, layout: bool) -> None:
    """Of what it keeps in fp32, under bf16 autocast: its normalizations stay fp32."""
    vae: Any = small_vae(upstream)
    for module, shape in ((encoder_of(vae), (3, 64, 64)), (decoder_of(vae), (8, 4, 4))):
        half, full = (
            pass_cost(module, Input(shape, grad=True), device=CUDA, dtype=dtype, channels_last=layout).saved_bytes
            for dtype in (torch.bfloat16, torch.float32)
        )
        assert 0.75 < half / full < 0.88


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_cuda_keeps_no_weights(masked: bool, dtype: torch.dtype) -> None:
    tokens = 256

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device) if masked else None
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    cost = pass_cost(Attention(), Input((1, tokens, 64), grad=True), device=CUDA, dtype=dtype)
    assert cost.saved_bytes < 4 * tokens * tokens, "less than one matrix of weights"


def test_counting_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(4, 4)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cpu")
    pass_cost(layer, Input((4,)), device=CUDA, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError):
        pass_cost(layer, Input((5,)), device=CUDA, dtype=torch.bfloat16)
    after = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cpu")
    assert before == after and layer(torch.ones(1, 4)).dtype == torch.float32


def test_a_module_without_memory_is_counted() -> None:
    with torch.device("meta"):
        outline = nn.Linear(4, 8)
    assert pass_cost(outline, Input((4,))) == pass_cost(nn.Linear(4, 8), Input((4,)))


def test_a_module_registered_twice_is_left_as_it_was() -> None:
    layer = nn.Linear(4, 4)
    pass_cost(nn.Sequential(layer, nn.Sequential(layer)), Input((4,)))
    assert type(layer.weight) is nn.Parameter and type(layer.bias) is nn.Parameter
