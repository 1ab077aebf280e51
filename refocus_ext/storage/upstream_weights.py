"""Files of VAR's and its VQVAE's weights, in both layouts that upstream writes and as safetensors; and their geometry.

Upstream publishes plain state dicts (`var_d16.pth`, `vae_ch160v4096z32.pth`); its training checkpoints (`ar-ckpt-*.pth`)
nest the same ones at ckpt["trainer"]["var_wo_ddp"] and ckpt["trainer"]["vae_local"].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.storage.weights import refuse_folder

# A tensor that only this network has.
LANDMARK = {"var_wo_ddp": "attn_bias_for_masking", "vae_local": "quantize.embedding.weight"}
NAME = {"var_wo_ddp": "VAR", "vae_local": "VQVAE"}


def var_state_dict(path: Path) -> dict[str, Tensor]:
    """VAR's state dict from a plain file, its safetensors twin or upstream's training checkpoint; no code is unpickled.

    Raises:
        UsageError: the file is missing or has no VAR weights.
    """
    return _state_dict(path, "var_wo_ddp")


def vae_state_dict(path: Path) -> dict[str, Tensor]:
    """The VQVAE's state dict from a plain file, its safetensors twin or upstream's training checkpoint.

    Raises:
        UsageError: the file is missing or has no VQVAE weights.
    """
    return _state_dict(path, "vae_local")


def _state_dict(path: Path, part: str) -> dict[str, Tensor]:
    refuse_folder(path)
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give a file with the weights of a {NAME[part]}.")
    state = _load(path)
    trainer = state.get("trainer")
    if isinstance(trainer, dict):
        if part not in trainer:
            raise UsageError(f"{path} is a training checkpoint without a {NAME[part]} ({part}); give another file.")
        state = trainer[part]
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not tensors or LANDMARK[part] not in state:
        raise UsageError(f"{path} holds no {NAME[part]}{_other(state, part)}; give another file.")
    return dict(state)


def is_plain(path: Path) -> bool:
    """Whether a file of weights is a bare state dict that `torch.load` reads, as upstream publishes them."""
    return path.suffix != ".safetensors" and "trainer" not in _load(path)


def _load(path: Path) -> dict[str, Any]:
    try:
        twin = path.suffix == ".safetensors"
        state = load_file(path) if twin else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or foreign file can raise almost any exception
        state = None
    if not isinstance(state, dict):
        raise UsageError(f"{path} is not a weights file that torch can load safely, or is damaged; copy it again.")
    return state


def _other(state: Any, part: str) -> str:
    """' but a VQVAE' if a VAR was expected, and the reverse."""
    found = [name for name, key in LANDMARK.items() if name != part and isinstance(state, dict) and key in state]
    return f" but a {NAME[found[0]]}" if found else ""


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
    phis = {name.split(".")[3] for name in state if name.startswith("quantize.quant_resi.qresi_ls.")}
    return VAEGeometry(codes.shape[0], codes.shape[1], state["encoder.conv_in.weight"].shape[0], len(phis))


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
