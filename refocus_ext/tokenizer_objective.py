"""What one stage-1 step trains: the structure tokenizer and, beside it, the alias tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as tdist

from refocus_ext.alias_tokenizer import AliasGeometry, AliasOutput, AliasTokenizer
from refocus_ext.config import TokenizerOptions
from refocus_ext.errors import UsageError
from refocus_ext.pyramid import FocusPyramid
from refocus_ext.structure import StructureObjective, StructureOutput


def alias_geometry(options: TokenizerOptions, pyramid: FocusPyramid) -> AliasGeometry | None:
    """The alias tokenizer's geometry, None where it is off or the pyramid has no alias state.

    Raises:
        UsageError: a stride that does not fit the alias views.
    """
    if options.alias == "off" or pyramid.states < 2:
        return None
    shared = options.alias_codebook == "shared"
    try:
        return AliasGeometry.of(
            pyramid,
            stride=options.alias_stride,
            codes=options.codebook_size if shared else options.alias_codes,
            code_dim=options.latent_channels if shared else 32,
            width=options.alias_width,
            codebook=options.alias_codebook,
        )
    except ValueError as error:
        raise UsageError(f"{error} (--alias-stride, or --alias off).") from None


def build_alias(geometry: AliasGeometry, vae: Any, device: torch.device | str) -> AliasTokenizer:
    """An alias tokenizer, on the structure codebook if the geometry says so."""
    shared = vae.quantize.embedding if geometry.codebook == "shared" else None
    return AliasTokenizer(geometry, shared).to(device)


def alias_views(pyramid: FocusPyramid, x_B3HW: Tensor) -> list[Tensor]:
    """The noise-free alias residuals A_k of the K-1 blurred states, (B,3,H/s_k,H/s_k)."""
    return [pyramid.alias(x_B3HW, k) for k in range(pyramid.states - 1)]


class TokenizerObjective(nn.Module):
    """Both tokenizers in one module, so that DistributedDataParallel sees one forward a step.

    The two share nothing but the image (and, in the ablation, the codebook): the structure tokenizer's bits are the same
    with and without the other.
    """

    def __init__(self, structure: StructureObjective, alias: AliasTokenizer | None) -> None:
        super().__init__()
        self.structure, self.alias = structure, alias

    def forward(
        self, x_B3HW: Tensor, state: int, *, quantize: bool, train_alias: bool
    ) -> tuple[StructureOutput, AliasOutput | None]:
        """
        Args:
            state: the focus state whose prefix and anchor this step decodes.
            quantize: False during the autoencoder warm-up.
            train_alias: False while a shared codebook is not there yet.
        """
        out = self.structure(x_B3HW, state, quantize)
        if self.alias is None:
            return out, None
        if not train_alias:
            out.loss = out.loss + self._take_part()
            return out, None
        return out, self.alias(alias_views(self.structure.pyramid, x_B3HW))

    def _take_part(self) -> Tensor | float:
        """Zero; under DistributedDataParallel every parameter must get a gradient."""
        if self.alias is None or not (tdist.is_available() and tdist.is_initialized()):
            return 0.0
        return 0 * torch.stack([parameter.sum() for parameter in self.alias.parameters()]).sum()
