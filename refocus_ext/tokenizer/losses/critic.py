"""The critic of a stage-1 run: when it starts, its term in the loss, and its own step. Add a new discriminator in this file.

Shapes: images (B,3,H,W) in [-1,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from refocus_ext.engine.devices import autocast
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import finite, gradient_norm
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

    def train_step(
        self, real: Sequence[Tensor], fake: Sequence[Tensor], factor: float, dtype: torch.dtype
    ) -> dict[str, float]:
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
        adamw: further optimizer arguments.
    """

    def __init__(
        self, recipe: CriticRecipe, steps: int, image_size: int, world: World, lr: float, clip: float, **adamw: Any
    ) -> None:
        self.recipe, self.start, self.world = recipe, recipe.start * steps, world
        self.lr, self.clip = lr, clip
        self.adversary = Adversary(image_size, lecam=recipe.lecam).to(world.device)
        self.parallel = world.parallel(self.adversary)
        self.optimizer = torch.optim.AdamW(self.adversary.parameters(), lr=lr, **adamw)

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
        weight = adaptive_weight(other_losses, loss, last_layer, floor=self.recipe.floor)
        grown = min(1.0, (step - self.start + 1) / self.recipe.warmup)
        return self.recipe.weight * grown * weight * loss, {"gan": loss.detach(), "gan_weight": weight.detach()}

    def train_step(
        self, real: Sequence[Tensor], fake: Sequence[Tensor], factor: float, dtype: torch.dtype
    ) -> dict[str, float]:
        """One discriminator step on the micro-batches of a step; all processes skip it if it is not finite on one.

        Args:
            factor: of the peak learning rate, from the schedule.
            dtype: of autocast.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for number, (x, image) in enumerate(zip(real, fake, strict=True)):
            with self.world.sync_gradients(self.parallel, number == len(real) - 1), autocast(dtype, self.world.device):
                loss, terms = self.parallel(x, image.detach())
            (loss / len(real)).backward()
            values = {name: values.get(name, 0.0) + float(term) / len(real) for name, term in terms.items()}
        norm = gradient_norm(self.adversary, self.clip)
        (bad,) = self.world.any(not finite(norm))
        if not bad:
            self.optimizer.step()
        return values | {"critic_grad_norm": norm if not bad else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Entries for a checkpoint."""
        return {"adversary": self.adversary.state_dict(), "critic_optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads its entries of a checkpoint."""
        self.adversary.load_state_dict(state["adversary"], strict=True)
        self.optimizer.load_state_dict(state["critic_optimizer"])
