"""What a stage-1 run takes of its device: its step counted, split until it fits, and printed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from patches.protocols import FocusedVQVAE
from refocus_ext.engine.devices import autocast_dtype, kind_of
from refocus_ext.engine.memory import size_in_words
from refocus_ext.engine.memory_plan import MemoryNeed, Needs, chosen_accumulate, in_words, require_memory
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.cost import StepCost, memory_need, modules_of, step_cost
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.recipe import StructureWeights


class Budget(NamedTuple):
    """A run's step and memory on each of `processes` processes, of which the fullest device has `free` bytes."""

    cost: StepCost
    needs: Needs
    free: int | None


def budget_of(
    options: TokenizerOptions,
    vae: FocusedVQVAE,
    geometry: AliasGeometry | None,
    lpips: nn.Module | None,
    device: torch.device,
    processes: int,
    free: int | None,
) -> Budget:
    """Counted on fake tensors."""
    modules = modules_of(vae, geometry, lpips, options.gan > 0)
    dtype = autocast_dtype(options.precision, device)
    layout = options.channels_last
    channels_last = layout == "on" or (layout == "auto" and kind_of(device).channels_last)
    weights = StructureWeights(options.l1, options.l2, options.commitment, options.prefix, options.anchor)
    cost = step_cost(modules, weights, device, dtype, channels_last)

    def need(checkpointed: bool) -> MemoryNeed:
        return memory_need(modules, cost, options.ema > 0, processes, checkpointed)

    return Budget(cost, Needs(need(False), need(True)), free)


def fitted(options: TokenizerOptions, budget: Budget, processes: int) -> TokenizerOptions:
    """The options with the number of micro-batches that "auto" is."""
    need = budget.needs.chosen(options.grad_checkpoint)
    share = options.batch_size // processes
    return options.replace(accumulate=chosen_accumulate(options.accumulate, need, share, budget.free))


def check_memory(options: TokenizerOptions, budget: Budget, device: torch.device, processes: int) -> None:
    """Raises UsageError if the estimate exceeds the free memory of a device that cannot swap."""
    if kind_of(device).swaps:
        return
    require_memory(
        budget.needs,
        options.batch_size // processes,
        options.accumulate,
        options.grad_checkpoint,
        budget.free,
        f"{device}",
        smaller="choose a smaller --image-size or --ch",
    )


def print_memory(options: TokenizerOptions, budget: Budget, processes: int) -> None:
    """Prints a line of the plan."""
    need = budget.needs.chosen(options.grad_checkpoint)
    print(in_words(need, options.batch_size // processes, options.accumulate, budget.free))


def print_cost(options: TokenizerOptions, cost: StepCost) -> None:
    """Prints the FLOPs of a step and where its memory goes, for --dry-run."""
    if cost.encodes:
        print(
            f"one step: {cost.flops / 1e9:.0f} GFLOP per image (encoder {cost.encodes} x {cost.encoder.flops / 1e9:.1f}, "
            f"decoder {cost.mean_decodes:.2g} x {cost.decoder.flops / 1e9:.1f}, times 3 with the backward pass)"
        )
    kept = {
        f"encoder {cost.encodes} x": cost.encoder.saved_bytes if cost.encodes else 0,
        f"decoder {cost.decodes} x": cost.decoder.saved_bytes if cost.decodes else 0,
        "LPIPS": cost.perceptual.saved_bytes,
        "critic": cost.adversary.saved_bytes,
        "losses, quantizer and alias tokenizer": cost.losses.saved_bytes,
    }
    parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in kept.items() if size)
    once = ", of which --grad-checkpoint keeps one pass at a time" if options.grad_checkpoint and cost.encodes else ""
    print(
        f"activations of an image: {size_in_words(cost.peak_bytes(options.grad_checkpoint))} at the peak ({parts}{once})"
    )
