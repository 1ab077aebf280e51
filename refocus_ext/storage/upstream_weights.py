"""Files of VAR's and its VQVAE's weights, in every layout that `storage/reading.py` takes apart; and their geometry.

Upstream publishes plain state dicts (`var_d16.pth`, `vae_ch160v4096z32.pth`); its training checkpoints (`ar-ckpt-*.pth`)
nest the same ones at ckpt["trainer"]["var_wo_ddp"] and ckpt["trainer"]["vae_local"].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.storage.reading import VAR, VQVAE, Reading, read_network


def read_var(path: Path) -> Reading:
    """VAR's weights in a file, or in a folder with one such file.

    Raises:
        UsageError: there are none, or several.
    """
    return _finite(path, read_network(path, VAR))


def read_vae(path: Path) -> Reading:
    """The VQVAE's weights in a file, or in a folder with one such file.

    Raises:
        UsageError: there are none, or several.
    """
    return _finite(path, read_network(path, VQVAE))


def _finite(path: Path, found: Reading) -> Reading:
    """
    Raises:
        UsageError: a weight is not a number, as after a training that diverged. (VAR's mask holds infinities.)
    """
    for name, tensor in found.state.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise UsageError(
                f"{path} holds values that are not numbers (in {name}); give the weights of another training."
            )
    return found


def var_state_dict(path: Path) -> dict[str, Tensor]:
    """As `read_var`, the state dict alone."""
    return read_var(path).state


def vae_state_dict(path: Path) -> dict[str, Tensor]:
    """As `read_vae`, the state dict alone."""
    return read_vae(path).state


def is_plain(path: Path) -> bool:
    """Whether a file of weights is a bare state dict that `torch.load` reads, as upstream publishes them."""
    for read in (read_var, read_vae):
        try:
            return read(path).plain
        except UsageError:
            continue
    return False


# ------------------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True)
class VAEGeometry:
    """Arguments of `Upstream.build_vae`: codes, their channels, base width, and the number of phis the scales share."""

    vocab_size: int
    z_channels: int
    ch: int
    share_quant_resi: int


@dataclass(frozen=True)
class VARGeometry:
    """Arguments of `Upstream.build_var`. `vocab_size` and `z_channels` are those of the VQVAE it was trained on."""

    depth: int
    embed_dim: int
    num_heads: int
    num_classes: int
    shared_aln: bool
    attn_l2_norm: bool
    patch_nums: tuple[int, ...]  # side of each token map, latent cells
    vocab_size: int
    z_channels: int


def vae_geometry(state: dict[str, Tensor]) -> VAEGeometry:
    """The geometry of a VQVAE's state dict.

    Raises:
        KeyError: a tensor is missing.
    """
    codes = state["quantize.embedding.weight"]
    return VAEGeometry(codes.shape[0], codes.shape[1], state["encoder.conv_in.weight"].shape[0], phis_of(state))


def phis_of(state: dict[str, Tensor]) -> int:
    """`share_quant_resi` of the builder: phis in a list, 1 for one phi of all scales, 0 for one of each scale's own."""
    parts = {tuple(name.split(".")[2:4]) for name in state if name.startswith("quantize.quant_resi.")}
    listed = [part for part in parts if part[0] == "qresi_ls"]
    return len(listed) if listed else int(any(part[0] == "qresi" for part in parts))


def scales_of_vae(state: dict[str, Tensor]) -> int | None:
    """The number of token maps that a VQVAE was trained with, None where its file does not show it."""
    hits = state.get("quantize.ema_vocab_hit_SV")
    return None if hits is None else hits.shape[0]


def var_geometry(state: dict[str, Tensor]) -> VARGeometry:
    """The geometry of a VAR's state dict.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the token maps are not square.
    """
    classes, width = state["class_emb.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    temperatures = state.get("blocks.0.attn.scale_mul_1H11")
    return VARGeometry(
        depth=depth,
        embed_dim=width,
        # Without normalised queries the weights do not show the number of heads: upstream's builder has one per block.
        num_heads=depth if temperatures is None else temperatures.shape[1],
        num_classes=classes - 1,
        shared_aln="shared_ada_lin.1.weight" in state,
        attn_l2_norm=temperatures is not None,
        patch_nums=_patch_nums(state["lvl_1L"]),
        vocab_size=state["head.weight"].shape[0],
        z_channels=state["word_embed.weight"].shape[1],
    )


def _patch_nums(scale_1L: Tensor) -> tuple[int, ...]:
    """Sides of the token maps from the scale number of each token."""
    lengths = scale_1L.flatten().bincount().tolist()
    sides = tuple(math.isqrt(length) for length in lengths)
    if [side * side for side in sides] != lengths:
        raise ValueError(f"token maps of {lengths} tokens are not square")
    return sides
