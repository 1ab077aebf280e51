"""Initial weights for a VQVAE trained from scratch; upstream ships trained weights and no initialisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# The last layer of every residual branch of the autoencoder, by upstream's names.
RESIDUAL_OUTPUTS = ("conv2", "proj_out")


@torch.no_grad()
def init_vae_weights(vae: Any) -> None:
    """Xavier-uniform convolutions, residual branches that start at zero, phi that starts as the identity.

    With PyTorch's default (a third of the variance) a deep GroupNorm autoencoder outputs a constant image for the first
    hundred steps; zeroed branch outputs let the signal pass the skips from the first step, as in DDPM's U-Net.
    """
    for module in (vae.encoder, vae.decoder, vae.quant_conv, vae.post_quant_conv):
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                if name.split(".")[-1] in RESIDUAL_OUTPUTS:
                    nn.init.zeros_(layer.weight)
    for layer in vae.quantize.quant_resi.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
