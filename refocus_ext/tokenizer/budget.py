"""What a stage-1 run takes of its device: its step counted, and printed."""

from __future__ import annotations

import torch
from torch import nn

from patches.protocols import FocusedVQVAE
from refocus_ext.engine.devices import autocast_dtype, kind_of
from refocus_ext.engine.memory.plan import Budget
from refocus_ext.engine.memory.watch import size_in_words
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.cost import StepCost, memory_need, modules_of, step_cost
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.plan import structure_weights

SMALLER = "choose a smaller --image-size or --ch"


def budget_of(
    options: TokenizerOptions,
    vae: FocusedVQVAE,
    geometry: AliasGeometry | None,
    lpips: nn.Module | None,
    device: torch.device,
    processes: int,
    free: int | None,
    backbone: nn.Module | None = None,
) -> tuple[StepCost, Budget]:
    """The cost of a step and its memory on each of `processes` processes, counted on fake tensors."""
    modules = modules_of(vae, geometry, lpips, options.gan > 0, backbone, options.disc_augment == "on", options.bcr)
    layout = options.channels_last
    cost = step_cost(
        modules,
        structure_weights(options),
        device,
        autocast_dtype(options.precision, device),
        channels_last=layout == "on" or (layout == "auto" and kind_of(device).channels_last),
    )
    plain, recomputed = (
        memory_need(modules, cost, options.ema > 0, processes, checkpointed) for checkpointed in (False, True)
    )
    return cost, Budget(plain, recomputed, options.batch_size // processes, free, options.grad_checkpoint)


def print_cost(options: TokenizerOptions, cost: StepCost) -> None:
    """Prints the FLOPs of a step and where its memory goes, for --dry-run."""
    if cost.encodes:
        print(
            f"one step: {cost.flops / 1e9:.0f} GFLOP per image (encoder {cost.encodes:.3g} x {cost.encoder.flops / 1e9:.1f}, "
            f"decoder {cost.mean_decodes:.3g} x {cost.decoder.flops / 1e9:.1f}, times 3 with the backward pass)"
        )
    kept = {
        f"encoder {cost.encodes:.3g} x": cost.encoder.saved_bytes if cost.encodes else 0,
        f"decoder {cost.decodes:.3g} x": cost.decoder.saved_bytes if cost.decodes else 0,
        "LPIPS": cost.perceptual.saved_bytes,
        "critic": cost.adversary.saved_bytes,
        "losses, quantizer and alias tokenizer": cost.losses.saved_bytes,
    }
    parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in kept.items() if size)
    once = "; --grad-checkpoint keeps one pass at a time" if options.grad_checkpoint and cost.encodes else ""
    print(f"memory of an image: {size_in_words(cost.peak_bytes(options.grad_checkpoint))} at the peak ({parts}{once})")
