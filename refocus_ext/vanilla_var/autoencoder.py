"""Encoder and decoder of the VQVAE: five resolutions, 16 pixels to a latent cell.

Shapes: B batch, C channels, H, W cells of the current map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (1, 1, 2, 2, 4)  # channels of each resolution in units of `ch`, from fine to coarse
STRIDE = 2 ** (len(WIDTHS) - 1)  # pixels to a latent cell
ENCODER_BLOCKS, DECODER_BLOCKS = 2, 3  # residual blocks to a resolution


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def norm_silu(norm: nn.Module, x_BCHW: Tensor) -> Tensor:
    return F.silu(norm(x_BCHW), inplace=True)


class ResidualBlock(nn.Module):
    """(B,C_in,H,W) -> (B,C_out,H,W): two normalised convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out)
        self.norm2 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout) if dropout > 1e-6 else nn.Identity()
        self.conv2 = conv3x3(channels_out, channels_out)
        same_width = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same_width else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.conv1(norm_silu(self.norm1, x_BCHW))
        inner = self.conv2(self.dropout(norm_silu(self.norm2, inner)))
        return self.nin_shortcut(x_BCHW) + inner


class SpatialAttention(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): every cell attends to every cell, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        query, key, value = self.qkv(self.norm(x_BCHW)).reshape(B, 3, C, H * W).unbind(1)
        # Each factor is laid out densely before its product: a GEMM of a transposed view may round differently.
        scores = torch.bmm(query.transpose(1, 2).contiguous(), key.contiguous()).mul_(C**-0.5)  # query x key
        weights = scores.softmax(dim=2).transpose(1, 2).contiguous()
        attended = torch.bmm(value.contiguous(), weights).view(B, C, H, W)
        return x_BCHW + self.proj_out(attended)


class Downsample(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2), padded at the right and bottom edge only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B,C,H,W) -> (B,C,2H,2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2, mode="nearest"))


RESIZERS = {"downsample": Downsample, "upsample": Upsample}


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention if the level attends, then a resize if any.

    Args:
        widths: channels before the first block and after each block.
        resize: a key of RESIZERS, which is also the submodule's name; None for the last level on the way.
    """

    def __init__(self, widths: Sequence[int], attends: bool, dropout: float, resize: str | None) -> None:
        super().__init__()
        self.block, self.attn = nn.ModuleList(), nn.ModuleList()
        for width, next_width in pairwise(widths):
            self.block.append(ResidualBlock(width, next_width, dropout))
            if attends:
                self.attn.append(SpatialAttention(next_width))
        self.resize = resize
        if resize is not None:
            self.add_module(resize, RESIZERS[resize](widths[-1]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[i](x_BCHW)
        return x_BCHW if self.resize is None else self.get_submodule(self.resize)(x_BCHW)


class Middle(nn.Module):
    """The bottleneck at the coarsest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


def build_levels(start: int, widths: Sequence[int], blocks: int, dropout: float, resize: str) -> list[Level]:
    """Levels in the order the signal passes them; the coarsest attends, all but the last resize."""
    coarsest, levels, before = max(widths), [], start
    for i, width in enumerate(widths):
        last = i == len(widths) - 1
        levels.append(Level([before, *[width] * blocks], width == coarsest, dropout, None if last else resize))
        before = width
    return levels


class Encoder(nn.Module):
    """(B,3,H,W) images in [-1,1] -> (B,z,H/16,W/16) latents, before `quant_conv`."""

    def __init__(self, ch: int, z_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [ch * multiple for multiple in WIDTHS]
        self.conv_in = conv3x3(3, ch)
        self.down = nn.ModuleList(build_levels(ch, widths, ENCODER_BLOCKS, dropout, "downsample"))
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], z_channels)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_B3HW)
        for level in self.down:
            h_BCHW = level(h_BCHW)
        return self.conv_out(norm_silu(self.norm_out, self.mid(h_BCHW)))


class Decoder(nn.Module):
    """(B,z,h,w) latents, after `post_quant_conv` -> (B,3,16h,16w) images, not clamped."""

    def __init__(self, ch: int, z_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [ch * multiple for multiple in reversed(WIDTHS)]
        self.conv_in = conv3x3(z_channels, widths[0])
        self.mid = Middle(widths[0], dropout)
        # Built from coarse to fine, as the signal passes them, but numbered from fine to coarse, as in the encoder.
        self.up = nn.ModuleList(reversed(build_levels(widths[0], widths, DECODER_BLOCKS, dropout, "upsample")))
        self.norm_out = group_norm(ch)
        self.conv_out = conv3x3(ch, 3)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        return self.conv_out(norm_silu(self.norm_out, h_BCHW))
