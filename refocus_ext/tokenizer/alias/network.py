"""Encoder and decoder of the alias tokenizer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from refocus_ext.tokenizer.alias.geometry import GROUPS, AliasGeometry

# ------------------------------------------------------------------------------------------------ network


class StateBlock(nn.Module):
    """Residual block whose second normalization is scaled and shifted by the focus state; the identity at the start."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.state = nn.Embedding(states, 2 * channels)
        for tensor in (self.state.weight, self.conv2.weight, self.conv2.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]  # the bias is there

    def forward(self, x_BChw: Tensor, state: int) -> Tensor:
        scale, shift = self.state.weight[state, :, None, None].chunk(2)
        hidden = self.conv1(F.silu(self.norm1(x_BChw)))
        return x_BChw + self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))


class _Trunk(nn.Module):
    """Layers in order; the residual blocks among them are told the focus state."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        last = layers[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)  # at the start the linear patch code speaks alone
        nn.init.zeros_(last.bias)

    def forward(self, x_BCHW: Tensor, state: int) -> Tensor:
        for layer in self.layers:
            x_BCHW = layer(x_BCHW, state) if isinstance(layer, StateBlock) else layer(x_BCHW)
        return x_BCHW


def _encoder(geometry: AliasGeometry) -> _Trunk:
    """(B, 3, H_k, H_k) -> (B, C, h, w)."""
    half, width, states = geometry.stride // 2, geometry.width, geometry.alias_states
    return _Trunk(
        nn.PixelUnshuffle(half),
        nn.Conv2d(3 * half**2, width, 3, padding=1),
        StateBlock(width, states),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        StateBlock(2 * width, states),
        StateBlock(2 * width, states),
        nn.Conv2d(2 * width, geometry.code_dim, 1),
    )


def _decoder(geometry: AliasGeometry) -> _Trunk:
    """(B, C, h, w) -> (B, 3 (stride/2)^2, 2h, 2w): pixels still folded into channels."""
    half, width, states = geometry.stride // 2, geometry.width, geometry.alias_states
    return _Trunk(
        nn.Conv2d(geometry.code_dim, 2 * width, 3, padding=1),
        StateBlock(2 * width, states),
        StateBlock(2 * width, states),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        StateBlock(width, states),
        nn.Conv2d(width, 3 * half**2, 3, padding=1),
    )
