"""What a stage-2 run takes of its device: weights, gradients, moments and activations, counted before it runs."""

from __future__ import annotations

import torch

from patches import Upstream
from refocus_ext.distill.cost import FP32, ActivationCost, activation_cost
from refocus_ext.distill.networks import NetworkPlan
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import ADAMW_BYTES, Sizes, token_geometry
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.engine.devices import autocast_dtype
from refocus_ext.engine.memory.plan import Budget, MemoryNeed
from refocus_ext.engine.memory.watch import size_in_words
from refocus_ext.tokens.trained_tokenizer import Tokenizer

SMALLER = "choose a smaller --depth"
GATHERED = 2  # blocks that FSDP2 holds whole at a time, besides those that run twice: one in use and the next


def budget_of(
    upstream: Upstream,
    options: DistillOptions,
    networks: NetworkPlan,
    geometry: TeacherGeometry | None,
    tokenizer: Tokenizer,
    size: Sizes,
    device: torch.device,
    processes: int,
    free: int | None,
) -> tuple[ActivationCost, Budget]:
    """The activations of a step and its memory on each of `processes` processes, counted on fake tensors."""
    cost = activation_cost(
        upstream,
        networks,
        geometry or token_geometry(options, tokenizer),
        tokenizer.trained_with.codebook_size,
        device,
        autocast_dtype(options.precision, device),
    )
    fixed, gradients = weight_bytes(options, size, processes)
    fixed += cost.fixed_bytes
    plain = MemoryNeed(fixed, cost.peak_bytes(), gradients)
    recomputed = MemoryNeed(
        fixed + gradients, cost.peak_bytes(checkpointed=True)
    )  # the last block beside all gradients
    return cost, Budget(plain, recomputed, options.batch_size // processes, free, options.grad_checkpoint)


def weight_bytes(options: DistillOptions, size: Sizes, processes: int) -> tuple[int, int]:
    """Bytes of weights and moments, and of gradients, on each process: whole ones, of whose gradients
    DistributedDataParallel has a second copy, or FSDP2's shards and the blocks that are whole at a time; and of a VAR that
    is not trained the weights alone."""
    student, others = size.cost.var_parameters, size.parameters - size.cost.var_parameters
    gathered = copies = 0
    if processes > 1 and options.parallel == "fsdp":
        blocks = min(options.depth, GATHERED + (options.teacher_blocks if options.teacher != "off" else 0))
        gathered = 2 * FP32 * student * blocks // options.depth  # weights and gradients
        student //= processes
    elif processes > 1:
        copies = FP32 * size.parameters
    held = (ADAMW_BYTES - FP32) * (student + others) + FP32 * size.still
    return held + gathered + copies, FP32 * (student + others)


def print_activations(options: DistillOptions, cost: ActivationCost, attention: str) -> None:
    """Prints where the memory of a micro-batch goes, for --dry-run."""
    how = "recomputed one at a time" if options.grad_checkpoint else "kept"
    print(
        f"memory of an image: {size_in_words(cost.peak_bytes(options.grad_checkpoint))} at the peak ({cost.blocks} x "
        f"{size_in_words(cost.block.saved_bytes)} of blocks that run once, {how}; {size_in_words(cost.rest.saved_bytes)} of the "
        f"others, the teacher and the losses), with {attention} attention"
    )
