"""The activations of a stage-2 step before it runs, counted on fake tensors of the run's own device.

Blocks are alike: those that run twice are counted with everything around them, and one of the others for all others.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patches import Upstream
from patches.model_parts import with_last_blocks
from refocus_ext.distill.losses import feature_distance
from refocus_ext.distill.networks import NetworkPlan, attention_patches
from refocus_ext.distill.objective import DistillObjective
from refocus_ext.distill.recipe import DistillWeights
from refocus_ext.distill.teacher.cost import outlines
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.kinds import teacher_class
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.distill.teacher.still import StillTeacher
from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.memory.pass_cost import Input, PassCost, pass_cost

LOGITS = 6  # fp32 copies of the logits at a time in eq. 13: those of both networks, their gradients, two temporaries
FP32 = 4  # bytes


@dataclass(frozen=True)
class ActivationCost:
    """What a step keeps for its backward pass.

    Args:
        block: one of the blocks that run once.
        rest: the blocks that run twice, the teacher's part, embeddings and the feature loss.
        blocks: number of blocks that run once.
        input_bytes: of a block's input, per image, which --grad-checkpoint keeps in place of the block.
        head_bytes: of the inputs of the heads, per image, in place of the logits.
        chunk_bytes: of the logits of a few images at a time, for any number of images.
    """

    block: PassCost
    rest: PassCost
    blocks: int
    input_bytes: int
    head_bytes: int
    chunk_bytes: int

    def peak_bytes(self, checkpointed: bool = False) -> int:
        """The most that a step holds per image of a micro-batch: what is kept, and what its backward pass works with."""
        working = max(self.rest.working_bytes, self.block.working_bytes)
        rest = self.rest.saved_bytes + self.head_bytes
        if not checkpointed:
            return rest + self.blocks * self.block.saved_bytes + working
        # a block runs again when all that came after it has been freed
        once = self.block.saved_bytes if self.blocks else 0
        return self.blocks * self.input_bytes + max(rest, once) + working

    @property
    def fixed_bytes(self) -> int:
        """Kept for any number of images: weights that autocast has cast, and a chunk of logits."""
        return self.rest.fixed_bytes + self.blocks * self.block.fixed_bytes + self.chunk_bytes


def activation_cost(
    upstream: Upstream,
    plan: NetworkPlan,
    geometry: TeacherGeometry,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> ActivationCost:
    """Of a step of `objective.DistillObjective` with the networks of `plan`.

    A separate teacher is counted as a second student beside the usual teacher, which is a little more than it is. Of a VAR
    without gradient only the last blocks keep anything.

    Args:
        geometry: of the teacher; without one only its width and token maps count.
        device, dtype: as of `pass_cost`.
    """
    taught = plan.teacher != "off"
    kind = teacher_class(plan.teacher)
    var, teacher = outlines(
        upstream,
        plan.depth,
        geometry,
        vocab_size,
        *attention_patches(plan.attention),
        kind=kind if kind and kind.counted else Teacher,
        settings=plan.settings,
        num_classes=plan.classes,
        shared_aln=plan.shared_aln,
    )
    tokens, doubled = int(var.L), geometry.blocks if taught else 0
    inputs = [Input((), dtype=torch.long), Input((tokens - int(var.first_l), int(var.Cvae)))]
    aliases = [Input((count, geometry.code_dim)) for count in geometry.tokens]

    def student(blocks: int) -> PassCost:
        with with_last_blocks(var, blocks):
            objective = DistillObjective(var, None, DistillWeights())
            return pass_cost(objective, *inputs, device=device, dtype=dtype, call=_passes)

    def both(blocks: int) -> PassCost:
        own = teacher.var if isinstance(teacher, StillTeacher) else None
        with with_last_blocks(var, blocks), with_last_blocks(own, blocks) if own else nullcontext():
            objective = DistillObjective(var, teacher, DistillWeights())
            return pass_cost(objective, *inputs, *aliases, device=device, dtype=dtype, call=_passes)

    one = student(1)
    block = student(2) - one
    rest = both(doubled) if taught else one - block
    blocks = plan.depth - doubled
    if plan.teacher == "separate":
        rest, blocks = rest + one + block * (doubled - 1), 2 * blocks
    itemsize = torch.empty((), dtype=dtype).element_size()
    at_once = tokens * max(1, kind_of(device).tokens_at_once // tokens)  # of eq. 13: whole images
    return ActivationCost(
        block=block,
        rest=rest,
        blocks=blocks,
        input_bytes=itemsize * tokens * geometry.width,
        head_bytes=(1 + taught) * FP32 * tokens * geometry.width,
        chunk_bytes=LOGITS * FP32 * at_once * vocab_size,
    )


def _passes(objective: nn.Module, label_B: Tensor, x_BLC: Tensor, *alias_K: Tensor) -> Any:
    assert isinstance(objective, DistillObjective)
    tape, taught = objective.passes(label_B, x_BLC, alias_K)
    return feature_distance([block.out_BLC for block in tape.blocks], taught.features) if taught else tape
