"""The tokenizer that a preset would train, untrained: stage 2 can be planned before stage 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from patches import load_upstream
from refocus_ext.options.presets import preset
from refocus_ext.tokenizer.alias.tokenizer import build_alias
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.plan import alias_geometry, build_vae, make_pyramid
from refocus_ext.tokenizer.stage_one import StageOne
from refocus_ext.tokens.trained_tokenizer import Tokenizer

NOT_YET = "not trained yet"


def planned_tokenizer(run: Path, named: str, data: str, val_share: float) -> Tokenizer:
    """A tokenizer with random weights and the geometry of the preset `named`, on the CPU.

    Args:
        run: the folder that its training would write.
        data, val_share: what it would be trained on.
    """
    values: dict[str, Any] = dict(preset(named, "tokenizer"))
    options = TokenizerOptions(preset=named, data=data, val_share=val_share, out=str(run), **values)
    pyramid = make_pyramid(options)
    vae = build_vae(load_upstream(), options, pyramid, torch.device("cpu"))
    geometry = alias_geometry(options, pyramid)
    alias = build_alias(geometry, vae, "cpu").requires_grad_(False).eval() if geometry else None
    vae.requires_grad_(False).eval()
    config = {"weights": {"vae.pth": NOT_YET, "alias.pth": NOT_YET}}
    note = f"not there yet; planned as preset {named} trains it"
    return Tokenizer(vae, alias, pyramid, config, StageOne.read(options.to_dict()), run, notes=(note,))
