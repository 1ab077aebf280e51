"""Tokens, features and likelihoods from Python: the small interface that stays as it is.

Images are (B,3,H,W) in [-1,1]; H = W is 16 times the last token map. Token maps are S times (B, pn*pn) int64, coarse to fine.
Labels are class numbers, one for each image or one for all; None is "no class". Nothing needs a gradient.

A tiny model made on the spot; `load_student` takes published files and runs of `bash run.sh distill` likewise:

>>> import tempfile
>>> import torch
>>> from patches import load_upstream
>>> _ = torch.manual_seed(0)
>>> vae = load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2, 4))
>>> var = load_upstream().build_var(vae, depth=2, num_classes=10)
>>> folder = tempfile.mkdtemp()
>>> torch.save(vae.state_dict(), f"{folder}/vae_tiny.pth")
>>> torch.save(var.state_dict(), f"{folder}/var_d2.pth")

>>> student = load_student(folder)
>>> images = torch.rand(3, 3, 64, 64) * 2 - 1
>>> tokens = encode(student, images)
>>> [tuple(idx.shape) for idx in tokens]
[(3, 1), (3, 4), (3, 16)]
>>> decode(student, tokens).shape
torch.Size([3, 3, 64, 64])
>>> [tuple(image.shape) for image in prefixes(student, tokens)] == [(3, 3, 64, 64)] * 3
True

The features of a layer, for image and class, and the log-likelihood in nats:

>>> features(student, images, labels=[1, 2, 7], layer=-1).shape
torch.Size([3, 21, 128])
>>> result = log_likelihood(student, images, labels=[1, 2, 7])
>>> result.scale_BS.shape, torch.allclose(result.scale_BS.sum(1), result.total_B)
(torch.Size([3, 3]), True)
>>> bool((result.total_B < 0).all())
True

A tokenizer alone, from a file; what the file does not say is an argument:

>>> tokenizer = load_tokenizer(f"{folder}/vae_tiny.pth", patch_nums=(1, 2, 4))
>>> all(torch.equal(a, b) for a, b in zip(encode(tokenizer, images), tokens))
True
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from patches.model_parts import blocks_of
from patches.protocols import VQVAE, device_of
from refocus_ext.errors import UsageError
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.tokens.bare_tokenizer import Assumed, open_tokenizer
from refocus_ext.tokens.trained_tokenizer import Tokenizer

__all__ = [
    "LogLikelihood",
    "Student",
    "Tokenizer",
    "decode",
    "encode",
    "features",
    "load_student",
    "load_tokenizer",
    "log_likelihood",
    "prefixes",
]

Labels = int | Sequence[int] | Tensor | None
Images = Tensor | Sequence[Tensor]  # images, or their token maps
SLACK = 1e-3  # beyond [-1,1], for values that were resized


class LogLikelihood(NamedTuple):
    """Log-probability in nats of the tokens of images: of all, and of each scale given the coarser ones; float64."""

    total_B: Tensor
    scale_BS: Tensor


def load_tokenizer(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    patch_nums: Sequence[int] | None = None,
    blur: str | None = None,
    focus_states: int | None = None,
    rho_max: float | None = None,
) -> Tokenizer:
    """A tokenizer from a run of `bash run.sh tokenizer`, or from a file of VQVAE weights in any layout.

    Args:
        patch_nums, blur, focus_states, rho_max: of a bare file; see `Assumed`.

    Raises:
        UsageError: something is missing, damaged, or of another geometry.
    """
    sides = None if patch_nums is None else tuple(patch_nums)
    return open_tokenizer(Path(path), device, Assumed(sides, blur, focus_states, rho_max))


# ------------------------------------------------------------------------------------------------ tokens


@torch.no_grad()
def encode(model: Student | Tokenizer, images: Tensor) -> list[Tensor]:
    """Token maps of images, as the model was trained to see them: focus tokens where its files record a pyramid.

    Raises:
        UsageError: images of another shape or range.
    """
    x = _checked(model, images)
    return model.tokens(x) if isinstance(model, Student) else model.vae.img_to_idxBl(x)


@torch.no_grad()
def decode(model: Student | Tokenizer, tokens: Sequence[Tensor]) -> Tensor:
    """Images (B,3,H,W) of token maps.

    Raises:
        UsageError: maps of other sizes, or tokens outside the codebook.
    """
    return model.vae.idxBl_to_img(_checked_tokens(model, tokens), same_shape=True, last_one=True)


@torch.no_grad()
def prefixes(model: Student | Tokenizer, images: Images) -> list[Tensor]:
    """The image (B,3,H,W) decoded from the tokens up to each scale, S times; of images or of their token maps.

    Raises:
        UsageError: see `encode` and `decode`.
    """
    return model.vae.idxBl_to_img(_tokens(model, images), same_shape=True, last_one=False)


# ------------------------------------------------------------------------------------------------ the transformer


@torch.no_grad()
def features(student: Student, images: Images, labels: Labels = None, layer: int = -1) -> Tensor:
    """Hidden features (B,L,C) after a block of a student that reads the tokens of images, all scales in a row.

    Args:
        images: images, or their token maps.
        layer: number of the block from 0, or from the last with -1, -2, ...

    Raises:
        UsageError: there is no such layer or class, or the images do not fit.
    """
    blocks = blocks_of(student.var)
    if not -len(blocks) <= layer < len(blocks):
        raise UsageError(f"layer {layer} does not exist; this student has the layers 0 to {len(blocks) - 1}.")
    seen: list[Tensor] = []
    handle = blocks[layer].register_forward_hook(lambda block, given, output: seen.append(output))
    try:
        _logits(student, _tokens(student, images), labels)
    finally:
        handle.remove()
    return seen[0].float()


@torch.no_grad()
def log_likelihood(student: Student, images: Images, labels: Labels = None) -> LogLikelihood:
    """How probable the tokens of images are to a student, without guidance or filters, nats.

    Two students compare on the same tokens only: those of one tokenizer.

    Raises:
        UsageError: there is no such class, or the images do not fit.
    """
    tokens = _tokens(student, images)
    logits_BLV = _logits(student, tokens, labels).float()
    nll_BL = F.cross_entropy(logits_BLV.transpose(1, 2), torch.cat(tokens, 1), reduction="none").double()
    scale_BS = torch.stack([-nll_BL[:, begin:end].sum(1) for begin, end in student.var.begin_ends], dim=1)
    return LogLikelihood(scale_BS.sum(1), scale_BS)


def _logits(student: Student, tokens: list[Tensor], labels: Labels) -> Tensor:
    label_B = _labels(student, labels, len(tokens[0]))
    with _no_label_drop(student):
        return student.var(label_B, student.vae.quantize.idxBl_to_var_input(tokens))


@contextlib.contextmanager
def _no_label_drop(student: Student) -> Iterator[None]:
    """VAR drops labels in eval mode too."""
    before, student.var.cond_drop_rate = student.var.cond_drop_rate, 0.0
    try:
        yield
    finally:
        student.var.cond_drop_rate = before


# ------------------------------------------------------------------------------------------------ checks


def _labels(student: Student, labels: Labels, count: int) -> Tensor:
    given: Any = student.num_classes if labels is None else labels
    label_B = torch.as_tensor(given, dtype=torch.long, device=student.device).flatten()
    label_B = label_B.expand(count) if len(label_B) == 1 else label_B
    if len(label_B) != count:
        raise UsageError(f"{len(label_B)} labels were given for {count} images; give one for each, or one for all.")
    if bad := [label for label in label_B.tolist() if not 0 <= label <= student.num_classes]:
        raise UsageError(
            f"label {bad[0]} is out of range; the classes are 0 to {student.num_classes - 1}, and {student.num_classes} (or "
            "None) is no class."
        )
    return label_B


def _tokens(model: Student | Tokenizer, images: Images) -> list[Tensor]:
    return encode(model, images) if isinstance(images, Tensor) else _checked_tokens(model, images)


def _checked(model: Student | Tokenizer, images: Tensor) -> Tensor:
    size = model.image_size if isinstance(model, Student) else model.pyramid.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise UsageError(f"the images are {tuple(images.shape)}, but this model takes (B, 3, {size}, {size}).")
    low, high = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not (images.is_floating_point() and -1 - SLACK <= low <= high <= 1 + SLACK):
        raise UsageError(f"the images have values from {low:g} to {high:g}, but they must be floats in [-1,1].")
    return images.to(device_of(_vae(model)), torch.float32)


def _checked_tokens(model: Student | Tokenizer, tokens: Sequence[Tensor]) -> list[Tensor]:
    quantizer = _vae(model).quantize
    expected = [side * side for side in quantizer.v_patch_nums]
    found = [idx.shape[-1] if idx.ndim == 2 else -1 for idx in tokens]
    if found != expected or len({len(idx) for idx in tokens}) != 1:
        shapes = ", ".join(str(tuple(idx.shape)) for idx in tokens)
        raise UsageError(
            f"the token maps are {shapes}, but this model has maps of {expected} tokens, each (B, tokens)."
        )
    if any(idx.numel() and not (int(idx.min()) >= 0 and int(idx.max()) < quantizer.vocab_size) for idx in tokens):
        raise UsageError(f"a token lies outside the codebook, whose codes are 0 to {quantizer.vocab_size - 1}.")
    return [idx.to(device_of(_vae(model)), torch.long) for idx in tokens]


def _vae(model: Student | Tokenizer) -> VQVAE:
    return model.vae
