"""VAR's training recipe, where the paper gives none: weight decay and learning rate, from upstream's `train.py`.

AdamW with betas `BETAS`, gradients clipped to norm `CLIP`; the gammas' initial gain is `patches.upstream.adaln_gamma_init`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from refocus_ext.distill.teacher.shown import OWN


@dataclass(frozen=True)
class DistillWeights:
    """lambda_feat and lambda_logit of eq. 13, the feature distance (see `losses.DISTANCES`) and the temperature of the logits."""

    feat: float = 1.0
    logit: float = 0.5
    distance: str = "normalized"
    temperature: float = 1.0


@dataclass(frozen=True)
class DistillRecipe:
    """How stage 2 trains and validates; `command.py` makes it from the options.

    Args:
        depth: of the VAR; its recipe depends on it.
        lr: peak learning rate of the student.
        teacher_lr: factor of `lr` for alias gates.
        precision: of the networks.
        tokens_precision: of the encoders that make tokens.
        sharded: FSDP2 if there are several processes.
        crop_scale: of the validation's crops.
        val_images: largest number of validation images.
        samples: images drawn at every validation.
        log_every: steps between per-scale records.
        held_out: whether training never shows the validation images.
        demo: a run on a few photographs; its closing lines say so.
        shown: the alias tokens that the teacher is shown in training, see `teacher.shown`.
    """

    depth: int
    lr: float
    teacher_lr: float
    weights: DistillWeights
    precision: str
    tokens_precision: str
    sharded: bool
    crop_scale: float
    val_images: int
    samples: int
    log_every: int
    held_out: bool
    demo: bool
    shown: str = OWN


BETAS = (0.9, 0.95)
CLIP = 2.0
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 1 / 50  # of all steps
WARMUP_START = 0.005  # factor at step 0
PLATEAU = 0.05  # share of the steps after warm-up that stay at the peak
# Parameters whose name contains one of these are not decayed. Of a VAR that is pos_start, pos_1LC, lvl_embed,
# scale_mul and, with shared AdaLN, ada_gss; class_emb and the AdaLN weights are decayed.
NOT_DECAYED = (
    *("cls_token", "start_token", "task_token", "cfg_uncond"),
    *("pos_embed", "pos_1LC", "pos_start", "start_pos", "lvl_embed"),
    *("gamma", "beta", "ada_gss", "moe_bias", "scale_mul"),
)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is decayed: matrices and tables are; vectors, biases and `NOT_DECAYED` are not."""
    return parameter.ndim != 1 and not name.endswith("bias") and not any(key in name for key in NOT_DECAYED)


def weight_decay_groups(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """AdamW parameter groups [decayed, not decayed], empty ones omitted; `wd_sc` is the group's factor (1 or 0).

    The order inside a group is that of the parameters, so that optimizer states of equal models fit each other.

    Raises:
        ValueError: a parameter is frozen; the optimizer would silently omit it.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            raise ValueError(f"'{name}' is frozen; every parameter of a VAR in training needs a gradient.")
        (decayed if is_decayed(name, parameter) else others).append(parameter)
    groups = ({"params": decayed, "wd_sc": 1.0}, {"params": others, "wd_sc": 0.0})
    return [group for group in groups if group["params"]]


def final_lr_factor(depth: int) -> float:
    """`wpe` of VAR's recipe: the last step's share of the peak rate, 0.1 up to d20, 0.01 beyond."""
    return 0.1 if depth <= 20 else 0.01


def final_weight_decay(depth: int) -> float:
    """`twde` of VAR's recipe: 0.08 from d30 on; below it the decay stays at `WEIGHT_DECAY`."""
    return 0.08 if depth >= 30 else WEIGHT_DECAY


def warmup_steps(steps: int) -> int:
    """VAR's warm-up: a fiftieth of the run, rounded."""
    return round(steps * WARMUP_SHARE)


def lin0(step: int, steps: int, warmup: int, end: float, start: float = WARMUP_START) -> float:
    """Factor on the peak rate at `step` (0-based): VAR's schedule `lin0`.

    Linear from `start` over `warmup` steps (which reaches 1 at step `warmup`), then 1 for `PLATEAU` of the remaining steps,
    then linear down to `end` at step `steps - 1`.
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    passed = (step - warmup) / max(1, steps - 1 - warmup)
    if passed < PLATEAU:
        return 1.0
    return end + (1 - end) * (1 - passed) / (1 - PLATEAU)


def cosine_weight_decay(step: int, steps: int, begin: float = WEIGHT_DECAY, end: float = WEIGHT_DECAY) -> float:
    """Weight decay at `step` (0-based): half a cosine from `begin` to `end`."""
    return end + (begin - end) * (0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1)))


def set_lr_and_decay(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Writes both into every group; the rate times the group's `lr_sc`, the decay times its `wd_sc`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_sc", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_sc", 1.0)
