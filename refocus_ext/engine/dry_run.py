"""What --dry-run prints of a whole run: processes, arithmetic, disk, and where it would continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refocus_ext.counting import counted
from refocus_ext.engine.checkpoints import checkpoints_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.memory.watch import size_in_words

REFERENCE = 100e12  # FLOP/s for the printed time: a round number from which a reader's own follows


def print_whole_run(options: Any, world: World, *, flops: float, disk: int) -> None:
    """Prints the lines, on rank 0.

    Args:
        options: of `tokenizer` or `distill`: steps, batch_size, out, resume.
        world: of the run's processes.
        flops: of a step, per image, with the backward pass.
        disk: bytes of all checkpoints that are kept and of the weights.
    """
    share = options.batch_size // world.size
    world.say(f"processes: {world.size}, with {counted(share, 'image')} of a step each")
    total = flops * options.steps * options.batch_size
    line = f"whole run: {options.steps:,} steps, {flops_in_words(total)}"
    if world.device.type == "cuda":
        each = f" on each of {world.size} GPUs" if world.size > 1 else ""
        line += f"; at {REFERENCE / 1e12:g} TFLOP/s{each} {_hours(total / world.size / REFERENCE)}"
    world.say(line)
    world.say(f"disk: {size_in_words(disk)} in {options.out}")
    begun = checkpoints_of(Path(options.out)).newest_step()
    if begun is not None and options.resume == "auto":
        world.say(f"continues the run in {options.out} after step {begun} of {options.steps}")


def flops_in_words(count: float) -> str:
    """
    >>> flops_in_words(3.2e18), flops_in_words(5e15), flops_in_words(2.5e12)
    ('3.2 EFLOP', '5 PFLOP', '2.5 TFLOP')
    """
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e12:.3g} TFLOP"


def _hours(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 3600:.3g} hours" if seconds >= 3600 else f"{seconds / 60:.2g} minutes"
