"""Upstream's own `VARTrainer.train_step`, on images or on given tokens: the reference for the cost of our training step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from patches.upstream import import_isolated


class _GivenTokens:
    """Replaces the trainer's VAE: returns the same tokens for any image."""

    def __init__(self, vae: Any, idx_BL: Tensor) -> None:
        self.quantize, self.vocab_size = vae.quantize, vae.vocab_size
        self.idx_S = list(idx_BL.split([pn * pn for pn in vae.quantize.v_patch_nums], dim=1))

    def img_to_idxBl(self, _: Any) -> list[Tensor]:
        return self.idx_S


def upstream_train_step(
    vae: Any,
    var: Any,
    optimizer: torch.optim.Optimizer,
    label_B: Tensor,
    idx_BL: Tensor | None = None,
    *,
    images_B3HW: Tensor | None = None,
    bf16: bool = False,
    clip: float = 2.0,
) -> Callable[[], None]:
    """A call of the result is one optimizer step of upstream's trainer, without logging.

    Args:
        idx_BL: its tokens, without its VAE's work; or
        images_B3HW: images in [-1,1], which the trainer tokenizes at each step with `vae`, as upstream does.
        bf16: upstream's autocast, which exists on CUDA only.

    Raises:
        ModuleNotFoundError: upstream's trainer needs pytz and typed-argument-parser.
        UpstreamError: the submodule is missing.
    """
    if (idx_BL is None) == (images_B3HW is None):
        raise ValueError("give either tokens or images")
    trainer_module, amp = import_isolated("trainer"), import_isolated("utils.amp_sc")
    names, parameters = zip(*var.named_parameters(), strict=True)
    amp_optimizer = amp.AmpOptimizer(2 if bf16 else 0, optimizer, list(names), list(parameters), clip)
    patch_nums = tuple(var.patch_nums)
    trainer = trainer_module.VARTrainer(
        label_B.device,
        patch_nums,
        tuple(16 * pn for pn in patch_nums),
        vae if idx_BL is None else _GivenTokens(vae, idx_BL),
        var,
        var,
        amp_optimizer,
        0.0,
    )
    images = torch.empty(0) if images_B3HW is None else images_B3HW
    silent = SimpleNamespace(log_iters=(), update=lambda **_: None)

    def step() -> None:
        trainer.train_step(1, 1, True, silent, silent, images, label_B, -1, 1.0)

    return step
