"""Parts of models share the model's layers and compute what the model computes; initial weights of a VQVAE."""

from __future__ import annotations

from typing import Any

import torch
from conftest import inside, small_vae

from patches import Upstream
from patches.model_parts import blocks_of, decoder_of, encoder_of, last_decoder_weight
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
