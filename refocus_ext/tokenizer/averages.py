"""Averaged weights: an exponential average of a network's weights and buffers, with a decay that grows during the first steps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from patches.protocols import FocusedVQVAE, as_module
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer


def decay_at(update: int, decay: float) -> float:
    """The decay of an update: 0 for number 0, which copies, then (1 + n) / (10 + n) of update n up to `decay`.

    That is the warm-up of latent diffusion's LitEma: 0.9 after 80 updates, 0.99 after 890, 0.9999 after 90,000.
    """
    return min((1 + update) / (10 + update), decay) if update else 0.0


class WeightAverage:
    """`module` is the averaged copy of a network; `update` moves it towards the network after each step.

    Not `torch.optim.swa_utils.AveragedModel`, whose update copies its counter to the GPU and waits for it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module: Any = copy.deepcopy(network)
        self._begun = False  # the first update copies

    @torch.no_grad()
    def update(self, network: nn.Module, number: int) -> None:
        """Adds the network's weights and buffers as update `number` (0: a copy)."""
        weight = 1.0 - decay_at(number, self.decay) if self._begun else 1.0
        self._begun = True
        moved: tuple[list[Tensor], list[Tensor]] = ([], [])
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        for pair in zip(_tensors(self.module), _tensors(network), strict=True):
            for tensors, tensor in zip(moved if pair[0].is_floating_point() else copied, pair, strict=True):
                tensors.append(tensor)
        if copied[0]:
            torch._foreach_copy_(*copied)
        if moved[0]:
            torch._foreach_lerp_(*moved, weight=weight)  # a copy at weight 1

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state, strict=True)
        self._begun = True


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


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

    def update(self, step: int, warm_autoencoder: int, alias_start: int) -> None:
        """Updates both averages after step `step` (0-based): copies until the network's own start.

        Args:
            warm_autoencoder: the step at which quantization starts, and with it the VQVAE's average.
            alias_start: the step at which the alias tokenizer starts, and with it its average.
        """
        if self.of_vae is not None:
            self.of_vae.update(as_module(self._vae), max(0, step - warm_autoencoder))
        if self.of_alias is not None and self._alias is not None:
            self.of_alias.update(self._alias, max(0, step - alias_start))

    def state_dict(self) -> dict[str, Any]:
        """Entries for a checkpoint."""
        parts = {"ema": self.of_vae, "alias_ema": self.of_alias}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads its entries of a checkpoint."""
        for name, part in (("ema", self.of_vae), ("alias_ema", self.of_alias)):
            if part is not None:
                part.load_state_dict(state[name])
