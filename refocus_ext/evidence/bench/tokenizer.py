"""Times the focus pyramid and tokenization beside upstream's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patches import Focus, patched
from patches.model_parts import encoder_of
from patches.protocols import VQVAE
from refocus_ext.engine.memory.pass_cost import Input, PassCost, pass_cost
from refocus_ext.evidence.bench.clock import time_interleaved
from refocus_ext.optics.psf import half_width
from refocus_ext.optics.pyramid import FocusPyramid, alias_views


def measure(vae: VQVAE, pyramid: FocusPyramid, x: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of each part and the ratios between them, and the same by FLOPs."""
    T_K, encoder = _targets(vae, pyramid, x), encoder_of(vae)
    parts: dict[str, Callable[[], Any]] = {
        "pyramid": lambda: pyramid.structure_views(x, training=True),
        "alias_views": lambda: alias_views(pyramid, x),
        "encoder": lambda: encoder(x),
        "vanilla_tokens": lambda: vae.img_to_idxBl(x),
        "focus_tokens": lambda: _focus(vae, pyramid, lambda: vae.img_to_idxBl(x)),
        "quantizer": lambda: _focus(vae, pyramid, lambda: vae.quantize.f_to_idxBl_or_fhat(T_K, to_fhat=False)),
    }
    seconds = time_interleaved(parts, repeats, x.device)
    cost = pass_cost(encoder, Input(tuple(x.shape[1:])))
    passes = pyramid.states * seconds["encoder"]
    return {
        "seconds": seconds,
        "time": {
            "pyramid_of_encoder_passes": seconds["pyramid"] / passes,
            "pyramid_of_training_step": seconds["pyramid"] / (seconds["pyramid"] + 3 * passes),
            "alias_views_of_encoder_passes": seconds["alias_views"] / passes,
            "quantizer_of_encoder_passes": seconds["quantizer"] / passes,
            "focus_tokens_over_vanilla_tokens": seconds["focus_tokens"] / seconds["vanilla_tokens"],
        },
        "flops": flop_shares(pyramid, cost),
    }


def flop_shares(pyramid: FocusPyramid, encoder: PassCost) -> dict[str, float]:
    """FLOPs per image of the pyramid's FFTs (5 N log2 N each, forth and back) against one encoder pass per state."""
    total = 0.0
    for k in range(pyramid.states - 1):
        side = pyramid.image_size + 2 * half_width(pyramid.blur, pyramid.radii[k], pyramid.factors[k])
        cells = 3 * side * side
        total += 2 * 2.5 * cells * math.log2(side * side) + 6 * cells  # real transforms cost half
    passes = pyramid.states * encoder.flops
    return {"pyramid": total, "encoder_passes": float(passes), "pyramid_of_encoder_passes": total / passes}


def _focus(vae: VQVAE, pyramid: FocusPyramid, call: Callable[[], Any]) -> Any:
    with patched(vae, Focus(pyramid)):
        return call()


@torch.no_grad()
def _targets(vae: VQVAE, pyramid: FocusPyramid, x: Tensor) -> list[Tensor]:
    with patched(vae, Focus(pyramid)) as focused:
        return focused.encode_targets(x)


def table(report: dict[str, Any]) -> list[str]:
    """The ratios, as lines."""
    seconds, ratio, flops = report["seconds"], report["time"], report["flops"]
    return [
        "part                             seconds",
        *(f"{name:<30} {value:>9.4f}" for name, value in seconds.items()),
        "",
        f"pyramid against its encoder passes       {100 * ratio['pyramid_of_encoder_passes']:.2f}% of the time, "
        f"{100 * flops['pyramid_of_encoder_passes']:.4f}% of the FLOPs",
        f"pyramid in a training step (at most)     {100 * ratio['pyramid_of_training_step']:.2f}% of the time",
        f"alias views against the encoder passes   {100 * ratio['alias_views_of_encoder_passes']:.2f}% of the time",
        f"quantizer against the encoder passes     {100 * ratio['quantizer_of_encoder_passes']:.2f}% of the time",
        f"focus tokens against vanilla VAR's       {ratio['focus_tokens_over_vanilla_tokens']:.2f} times the time",
    ]
