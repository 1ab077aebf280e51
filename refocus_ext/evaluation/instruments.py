"""What a tokenizer is measured with: LPIPS, Inception, SSIM, where their weights are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.evaluation.inception import InceptionFeatures, load_inception
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.tokenizer.perceptual import load_lpips
from refocus_ext.tokenizer.prefixes import psnr
from refocus_ext.tokens.trained_tokenizer import Tokenizer

Measure = Callable[[Tensor, Tensor], Tensor]  # image, target (B,3,H,W) -> (B,)


# ------------------------------------------------------------------------------------------------ what is measured, on what


class AliasCoder(Protocol):
    """What is asked of an alias tokenizer (`AliasTokenizer` has it)."""

    def tokens(self, alias_K: Sequence[Tensor]) -> list[Tensor]: ...
    def reconstruct(self, idx_K: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass
class Instruments:
    """The measures that can be taken here, and why the others cannot."""

    measures: dict[str, Measure]
    inception: InceptionFeatures | None = None
    alias: AliasCoder | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)


def open_instruments(options: EvalOptions, tokenizer: Tokenizer, device: torch.device) -> Instruments:
    """PSNR and SSIM always; LPIPS, rFID and the alias tokenizer where their files are.

    Raises:
        UsageError: a file that was named is missing or not what it should be.
    """
    tools = Instruments({"psnr": psnr, "ssim": ssim})
    lpips = _if_there(tools, "lpips", options.lpips_weights, lambda: load_lpips(options.lpips_weights, device))
    if lpips is not None:
        tools.measures["lpips"] = lpips
    path = options.inception_weights
    tools.inception = _if_there(tools, "rfid", path, lambda: load_inception(path, device))
    tools.alias = tokenizer.alias
    if tools.alias is None:
        tools.not_measured["alias"] = f"{tokenizer.path} trained no alias tokenizer."
    return tools


def _if_there(tools: Instruments, name: str, given: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; a file that nobody named may be missing, and is then noted as the reason."""
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

    # in [0,1]: SSIM's luminance term compares means and has no meaning for means around 0
    unit, reference = ((values.clamp(-1, 1) + 1) / 2 for values in (image, target))
    value = structural_similarity_index_measure(unit, reference, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value
