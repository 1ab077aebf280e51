"""Images -> structure and alias tokens: the one function that the token cache and training on the fly share.

Shapes: B images, L structure tokens (all scales, coarse to fine), T alias tokens (all states, most blurred first; 0
without an alias tokenizer). Images are in [-1,1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from refocus_ext.engine.devices import fp32_products, kind_of
from refocus_ext.engine.progress import Progress
from refocus_ext.errors import UsageError
from refocus_ext.images.crops import Crops
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.optics.pyramid import alias_views
from refocus_ext.tokens.trained_tokenizer import Tokenizer

PRECISIONS = ("fp32", "tf32", "bf16")


def pick_precision(name: str, device: torch.device) -> str:
    """'auto' is tf32 on CUDA, as upstream's training encodes, and fp32 elsewhere.

    Raises:
        UsageError: tf32 on a device without it.
    """
    has_tf32 = kind_of(device).has_tf32
    if name == "tf32" and not has_tf32:
        raise UsageError(f"tf32 is CUDA's, and this runs on {device}; choose fp32, bf16 or auto.")
    if name == "auto":
        return "tf32" if has_tf32 else "fp32"
    return name


def prepare(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, frozen, in eval mode and in its device's fastest memory layout for convolutions."""
    for module in (tokenizer.vae, tokenizer.alias):
        if module is not None:
            module.requires_grad_(False).eval()
            if kind_of(device_of(tokenizer)).channels_last:
                module.to(memory_format=torch.channels_last)
    return tokenizer


def device_of(tokenizer: Tokenizer) -> torch.device:
    return tokenizer.vae.quantize.embedding.weight.device


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, x_B3HW: Tensor, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Structure tokens (B,L) and alias tokens (B,T), int64, on the tokenizer's device.

    Args:
        precision: fp32, tf32 or bf16, of the encoders; quantization is always fp32.

    Raises:
        ValueError: a tokenizer in train mode, which would add noise to the views, or an unknown precision.
    """
    vae, alias = tokenizer.vae, tokenizer.alias
    if vae.training:
        raise ValueError("the tokenizer is in train mode and would tokenize noise; call `prepare` first")
    x = x_B3HW.to(device_of(tokenizer), non_blocking=True)
    residuals = [] if alias is None else alias_views(tokenizer.pyramid, x)
    with _arithmetic(precision, x.device):
        targets = vae.encode_targets(x)
        z_K = [] if alias is None else [alias.encode(A, k) for k, A in enumerate(residuals)]
    with _arithmetic("fp32", x.device):
        targets = targets.float() if isinstance(targets, Tensor) else [T.float() for T in targets]
        idx_S = vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=False)
        idx_K = [] if alias is None else [alias.quantize(z).idx_Bhw.flatten(1) for z in z_K]
    return torch.cat(idx_S, dim=1), torch.cat([x.new_empty(len(x), 0, dtype=torch.long), *idx_K], dim=1)


@contextmanager
def _arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Sets the arithmetic of products and convolutions inside; restores the process's settings afterwards."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    with (
        fp32_products(tf32=precision == "tf32"),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


def token_counts(tokenizer: Tokenizer) -> tuple[int, int]:
    """(L, T), tokens of an image."""
    structure = sum(side * side for side in tokenizer.vae.quantize.v_patch_nums)
    return structure, 0 if tokenizer.alias is None else tokenizer.alias.geometry.tokens


def split_maps(tokens_BN: Tensor, sides: Sequence[int]) -> tuple[Tensor, ...]:
    """Splits concatenated square token maps, each (B, side * side): structure tokens by patch_nums, alias tokens by
    the grids of their geometry."""
    return tokens_BN.split([side * side for side in sides], dim=1)


def tokenize_images(
    tokenizer: Tokenizer,
    images: ImageSource,
    indices: Sequence[int],
    size: int,
    scale: float,
    batch: int,
    precision: str = "fp32",
    quiet: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of centre crops, for validation: structure (N,L), alias (N,T) and labels (N,), int64, on the CPU.

    Args:
        quiet: do not show progress.
    """
    crops, rows = Crops(images, size, scale=scale, random=False), []
    progress = Progress(0, math.ceil(len(indices) / batch), batch, quiet=quiet, unit="batch")
    for first in range(0, len(indices), batch):
        samples = [crops.told(index) for index in indices[first : first + batch]]
        tokens = tokenize(tokenizer, torch.stack([sample.image for sample in samples]), precision)
        rows.append((*(part.cpu() for part in tokens), torch.tensor([sample.label for sample in samples])))
        progress.update(len(rows), {})
    progress.close()
    if not rows:
        raise ValueError("no images were given to tokenize")
    structure, alias, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return structure, alias, labels
