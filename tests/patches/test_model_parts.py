"""Parts of models share the model's layers and compute what the model computes; initial weights of a VQVAE."""

from __future__ import annotations

from typing import Any

import torch
from conftest import inside, small_vae

from patches import Upstream
from patches.model_parts import blocks_of, compile_blocks, decoder_of, encoder_of, last_decoder_weight
from patches.protocols import as_module, device_of
from patches.vae_init import RESIDUAL_OUTPUTS, init_vae_weights


def test_parts_are_the_models_own(upstream: Upstream) -> None:
    vae = small_vae(upstream).eval()
    var = upstream.build_var(vae, depth=2, num_classes=3)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = encoder_of(vae)(x)
        assert torch.equal(latent, inside(vae).quant_conv(inside(vae).encoder(x)))
        assert torch.equal(decoder_of(vae)(latent).clamp(-1, 1), vae.fhat_to_img(latent))
    assert {id(p) for p in encoder_of(vae).parameters()} < {id(p) for p in vae.parameters()}
    assert last_decoder_weight(vae) is inside(vae).decoder.conv_out.weight
    assert blocks_of(var) == list(inside(var).blocks) and as_module(var) is var
    assert device_of(vae) == torch.device("cpu")


def test_initial_weights_let_the_signal_through_the_skips(upstream: Upstream) -> None:
    vae: Any = upstream.build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2, 4), test_mode=False)
    torch.manual_seed(0)
    init_vae_weights(vae)
    outputs = [
        layer for part in (vae.encoder, vae.decoder) for name, layer in part.named_modules()
        if name.split(".")[-1] in RESIDUAL_OUTPUTS
    ]  # fmt: skip
    assert outputs and all(not layer.weight.any() and not layer.bias.any() for layer in outputs)
    h = torch.randn(2, 8, 4, 4)
    assert all(torch.equal(phi(h), h) for phi in vae.quantize.quant_resi.qresi_ls), "phi starts as the identity"
    assert vae.encoder.conv_in.weight.std() > 0.02


def test_blocks_are_compiled_once_for_all(upstream: Upstream) -> None:
    """More blocks than Dynamo compiles of one function, each with its own rate of stochastic depth; the results are stock's."""
    from torch._dynamo.utils import counters

    depth = torch._dynamo.config.recompile_limit + 3
    vae, ends = small_vae(upstream), []
    torch.manual_seed(0)
    var = upstream.build_var(vae, depth=depth, embed_dim=64, num_heads=2, num_classes=3).train()
    label_B, x_BLC = torch.tensor([0, 2]), torch.randn(2, var.L - 1, 8)
    names = list(var.state_dict())
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        if compiled:
            compile_blocks(blocks_of(var), backend="eager")
        torch.manual_seed(1)
        logits = var(label_B, x_BLC)
        ends.append((logits, torch.autograd.grad(logits.square().mean(), inside(var).word_embed.weight)[0]))
    assert 0 < counters["stats"]["unique_graphs"] < depth / 2 and not counters["unimplemented"]
    assert list(var.state_dict()) == names
    assert torch.allclose(ends[0][0], ends[1][0], atol=1e-5) and torch.allclose(ends[0][1], ends[1][1], atol=1e-6)
    torch._dynamo.reset()
