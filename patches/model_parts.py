"""Parts of upstream's models that the rest of the project compiles, counts or shards.

Shapes: B batch, Cvae latent channels, n latent cells per side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from patches.protocols import VAR, VQVAE


def encoder_of(vae: VQVAE) -> nn.Module:
    """(B,3,H,W) -> T (B,Cvae,n,n), sharing the VQVAE's layers."""
    model: Any = vae
    return nn.Sequential(model.encoder, model.quant_conv)


def decoder_of(vae: VQVAE) -> nn.Module:
    """(B,Cvae,n,n) -> (B,3,H,W), not clamped, sharing the VQVAE's layers."""
    model: Any = vae
    return nn.Sequential(model.post_quant_conv, model.decoder)


def last_decoder_weight(vae: VQVAE) -> Tensor:
    """Weight of the decoder's last convolution."""
    model: Any = vae
    return model.decoder.conv_out.weight


@cache
def _eager_conv2d() -> type[nn.Conv2d]:
    """A convolution that stays uncompiled inside a compiled network. Made when it is needed: `disable` imports Dynamo."""

    class EagerConv2d(nn.Conv2d):
        forward = torch.compiler.disable(nn.Conv2d.forward)

    return EagerConv2d


def compile_autoencoder(vae: VQVAE, **options: Any) -> None:
    """torch.compile of encoder and decoder in place, so that the state dict keeps upstream's names.

    The decoder's last convolution stays uncompiled: the adaptive weight of the critic asks for gradients of its weight alone, and
    compiled code can only run its whole backward pass.

    Args:
        options: of `torch.compile`.
    """
    model: Any = vae
    model.decoder.conv_out.__class__ = _eager_conv2d()
    model.encoder.compile(**options)
    model.decoder.compile(**options)


def compile_blocks(blocks: Sequence[nn.Module], **options: Any) -> None:
    """torch.compile of transformer blocks in place, as one compilation for all of them.

    Stochastic depth stays uncompiled. Its rate differs between blocks and is a constant of compiled code, so that every block
    would be compiled by itself, and Dynamo gives up after eight.

    Args:
        options: of `torch.compile`.
    """
    for block in blocks:
        drop_path: Any = block.drop_path
        drop_path.forward = torch.compiler.disable(drop_path.forward)
        block.compile(**options)


def compile_for_sampling(var: VAR, vae: VQVAE) -> None:
    """torch.compile, in place, of the parts whose shapes differ only in length between sampling steps: FFNs and the decoder."""
    model, autoencoder = _any(var), _any(vae)
    for network in (*(block.ffn for block in model.blocks), autoencoder.decoder):
        network.compile(dynamic=True)


def blocks_of(var: VAR) -> list[nn.Module]:
    """The transformer's blocks, first to last."""
    return list(_any(var).blocks)


@contextmanager
def with_last_blocks(var: VAR, count: int) -> Iterator[None]:
    """Inside, the VAR has only its last `count` blocks; where it has fewer, its last one several times."""
    model = _any(var)
    whole = model.blocks
    kept = list(whole)[-count:]
    model.blocks = nn.ModuleList(kept + kept[-1:] * (count - len(kept)))
    try:
        yield
    finally:
        model.blocks = whole


def _any(model: Any) -> Any:
    return model
