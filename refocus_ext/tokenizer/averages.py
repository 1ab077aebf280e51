"""Averaged weights: an exponential average of a network's weights and buffers, with a decay that grows during the first steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from patches.protocols import FocusedVQVAE, as_module
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer

WARMUP_POWER = 2 / 3  # decay 0.9 after 31 steps, 0.99 after 1000


def decay_at(step: int, decay: float) -> float:
    """The decay of update number `step`: 0 for the first two, then 1 - step^(-2/3) up to `decay`."""
    passed = max(0, step - 1)
    return min(1 - (1 + passed) ** -WARMUP_POWER, decay) if passed else 0.0


class WeightAverage:
    """`module` is the averaged copy of a network; `update` moves it towards the network after each step."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weight = 1.0  # of the network in the next update
        self._averaged = AveragedModel(network, multi_avg_fn=self._move, use_buffers=True)

    @property
    def module(self) -> Any:
        return self._averaged.module

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Adds the network's weights after update number `step`."""
        self._weight = 1.0 - decay_at(step, self.decay)
        self._averaged.update_parameters(network)

    def _move(self, averaged: Any, current: Any, _: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight=self._weight)
        else:
            torch._foreach_copy_(averaged, current)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state, strict=True)
        self._averaged.n_averaged.fill_(1)  # otherwise the next update would only copy


class Averages:
    """The averaged weights of both tokenizers, which are validated and written.

    Args:
        alias: the alias tokenizer, or None.
        decay: 0 averages nothing; the networks' own weights are then the finished ones.
    """

    def __init__(self, vae: FocusedVQVAE, alias: AliasTokenizer | None, decay: float) -> None:
        self._vae, self._alias = vae, alias
        trained = any(parameter.requires_grad for parameter in vae.parameters())  # a frozen one is its own average
        self.of_vae = WeightAverage(as_module(vae), decay) if decay and trained else None
        self.of_alias = WeightAverage(alias, decay) if decay and alias is not None else None
        if self.of_alias is not None and self.of_alias.module.geometry.codebook == "shared":
            self.of_alias.module.share(self.vae.quantize.embedding)

    @property
    def vae(self) -> Any:
        """The finished VQVAE."""
        return self._vae if self.of_vae is None else self.of_vae.module

    @property
    def alias(self) -> Any:
        """The finished alias tokenizer, or None."""
        return self._alias if self.of_alias is None else self.of_alias.module

    def update(self, step: int, warm_autoencoder: int) -> None:
        """Updates both averages after step `step` (0-based); the VQVAE's average starts when quantization starts."""
        if self.of_vae is not None:
            self.of_vae.update(as_module(self._vae), step=max(0, step - warm_autoencoder))
        if self.of_alias is not None and self._alias is not None:
            self.of_alias.update(self._alias, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Entries for a checkpoint."""
        parts = {"ema": self.of_vae, "alias_ema": self.of_alias}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads its entries of a checkpoint."""
        for name, part in (("ema", self.of_vae), ("alias_ema", self.of_alias)):
            if part is not None:
                part.load_state_dict(state[name])
