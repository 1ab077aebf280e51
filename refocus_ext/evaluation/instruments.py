"""The measures of a tokenizer: SSIM, and LPIPS and Inception if their weights are available."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.evaluation.inception import InceptionFeatures, load_inception
from refocus_ext.tokenizer.losses.perceptual import load_lpips
from refocus_ext.tokenizer.prefixes import psnr
from refocus_ext.tokens.trained_tokenizer import Tokenizer

Measure = Callable[[Tensor, Tensor], Tensor]  # image, target (B,3,H,W) -> (B,)


# ------------------------------------------------------------------------------------------------ what is measured, on what


class AliasCoder(Protocol):
    """The methods of `AliasTokenizer` that are needed."""

    def tokens(self, alias_K: Sequence[Tensor]) -> list[Tensor]: ...
    def reconstruct(self, idx_K: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass
class Instruments:
    """The available measures, and the reasons why the others are not."""

    measures: dict[str, Measure]
    inception: InceptionFeatures | None = None
    alias: AliasCoder | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)


def open_instruments(
    tokenizer: Tokenizer, device: torch.device, *, lpips_weights: str = "", inception_weights: str = ""
) -> Instruments:
    """PSNR and SSIM always; LPIPS, rFID and the alias tokenizer if their files are available.

    Args:
        lpips_weights, inception_weights: files; empty looks in torch's hub folder.

    Raises:
        UsageError: a file given by the user is missing or of the wrong kind.
    """
    tools = Instruments({"psnr": psnr, "ssim": ssim})
    lpips = _if_there(tools, "lpips", lpips_weights, lambda: load_lpips(lpips_weights, device))
    if lpips is not None:
        tools.measures["lpips"] = lpips
    tools.inception = _if_there(tools, "rfid", inception_weights, lambda: load_inception(inception_weights, device))
    tools.alias = tokenizer.alias
    if tools.alias is None:
        lacks = "is a bare file, without an" if tokenizer.bare else "trained no"
        tools.not_measured["alias"] = f"{tokenizer.path} {lacks} alias tokenizer."
    return tools


def _if_there(tools: Instruments, name: str, given: str, load: Callable[[], Any]) -> Any:
    """The result of `load`; a file not given by the user may be missing, which is recorded as the reason."""
    try:
        return load()
    except UsageError as error:
        if given:
            raise
        tools.not_measured[name] = str(error)
        return None


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al., 2004; Gaussian window of sigma 1.5), for values in [-1,1], (B,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    # in [0,1]: SSIM's luminance term compares means and is meaningless for means around 0
    unit, reference = ((values.clamp(-1, 1) + 1) / 2 for values in (image, target))
    value = structural_similarity_index_measure(unit, reference, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value
