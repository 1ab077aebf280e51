"""The critic of a stage-1 run: when it starts, its term in the loss, and its own step.

Shapes: images (B,3,H,W) in [-1,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refocus_ext.engine.devices import autocast, loss_scaler
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import GuardedStep, decay_groups, gradient_norm, load_optimizer
from refocus_ext.engine.step_result import Scalars, added
from refocus_ext.tokenizer.losses.adversarial import Adversary, adaptive_weight
from refocus_ext.tokenizer.recipe import CriticRecipe


class NoCritic:
    """A run without adversarial loss."""

    def active(self, step: int) -> bool:
        return False

    def generator_term(
        self, step: int, image: Tensor, other_losses: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise RuntimeError("there is no critic")

    def train_step(self, real: Sequence[Tensor], fake: Sequence[Tensor], factor: float, skip: Tensor) -> Scalars:
        raise RuntimeError("there is no critic")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Critic(NoCritic):
    """A discriminator with its optimizer; it is active from step `start` on.

    Args:
        steps: total steps; `recipe.start` is a share of them.
        lr: peak learning rate.
        clip: limit of its gradient norm.
        dtype: of autocast; with fp16 it has a loss scaler of its own.
        backbone: frozen features on which the discriminator stands; None for PatchGAN.
        weight_decay: of matrices, see `decay_groups`.
        adamw: further optimizer arguments.
    """

    def __init__(
        self,
        recipe: CriticRecipe,
        steps: int,
        image_size: int,
        world: World,
        lr: float,
        clip: float,
        dtype: torch.dtype,
        backbone: nn.Module | None = None,
        weight_decay: float = 0.0,
        **adamw: Any,
    ) -> None:
        self.recipe, self.start, self.world = recipe, recipe.start * steps, world
        self.lr, self.clip, self.dtype = lr, clip, dtype
        self.adversary = Adversary(
            image_size, lecam=recipe.lecam, backbone=backbone, augments=recipe.augment, bcr=recipe.bcr
        ).to(world.device)
        self.parallel = world.parallel(self.adversary)
        groups = decay_groups(self.adversary, weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, **adamw)
        self.scaler = loss_scaler(dtype, world.device)
        self.guarded = GuardedStep(world, self.scaler, self.optimizer)

    def active(self, step: int) -> bool:
        """Whether the adversarial loss is on at `step` (0-based)."""
        return step >= self.start

    def generator_term(
        self, step: int, image: Tensor, other_losses: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's adversarial loss, weighted so that its gradient at the decoder's last layer matches that of the
        sharp reconstruction's other losses (VQGAN's adaptive weight).

        Args:
            image: the sharp reconstruction, with gradient.
            last_layer: weight of the decoder's last layer.

        Returns:
            (weighted term, detached terms for the log).
        """
        loss = self.adversary.generator_loss(image)
        scale = self.scaler.scale
        weight = adaptive_weight(scale(other_losses), scale(loss), last_layer, floor=self.recipe.floor)
        grown = min(1.0, (step - self.start + 1) / self.recipe.warmup)
        return self.recipe.weight * grown * weight * loss, {"gan": loss.detach(), "gan_weight": weight.detach()}

    def train_step(self, real: Sequence[Tensor], fake: Sequence[Tensor], factor: float, skip: Tensor) -> Scalars:
        """One discriminator step on the micro-batches of a step; all processes skip it if it is not finite on one.

        Args:
            factor: of the peak learning rate, from the schedule.
            skip: bool tensor (), whether the tokenizer's own step was skipped; this one is then skipped too.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.adversary.begin_step()
        values: Scalars = {}
        for number, (x, image) in enumerate(zip(real, fake, strict=True)):
            with (
                self.world.sync_gradients(self.parallel, number == len(real) - 1),
                autocast(self.dtype, self.world.device),
            ):
                loss, terms = self.parallel(x, image.detach())
            self.scaler.scale(loss / len(real)).backward()
            added(values, terms, len(real))
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.adversary, self.clip)
        _, skipped = self.guarded.step([loss], [norm], skip)
        return values | {"critic_grad_norm": torch.where(skipped, 0.0, norm)}

    def state_dict(self) -> dict[str, Any]:
        """Entries for a checkpoint."""
        state = {"adversary": self.adversary.state_dict(), "critic_optimizer": self.optimizer.state_dict()}
        return state | ({"critic_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads its entries of a checkpoint."""
        self.adversary.load_state_dict(state["adversary"], strict=True)
        load_optimizer(self.optimizer, state["critic_optimizer"], decay_groups(self.adversary, 0.0))
        if state.get("critic_scaler"):  # missing if the run was in another precision so far
            self.scaler.load_state_dict(state["critic_scaler"])
