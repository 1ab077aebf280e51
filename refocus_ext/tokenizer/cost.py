"""The cost of a training step before it runs: FLOPs and memory of a VQVAE's passes, counted on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from patches.model_parts import decoder_of, encoder_of
from patches.protocols import VQVAE


@dataclass(frozen=True)
class PassCost:
    """One forward pass of one image: FLOPs (a multiply-add is two), and bytes kept for the backward pass in fp32."""

    flops: int
    saved_bytes: int


def pass_cost(module: nn.Module, *shape: int) -> PassCost:
    """Cost of `module` on an input of `shape`; nothing is computed and no memory is allocated.

    A tensor that several operations save is counted once.
    """
    kept: dict[int, int] = {}
    own = {id(parameter) for parameter in module.parameters()}
    device = next(module.parameters()).device

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own and tensor.untyped_storage()._cdata not in kept:
            kept[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.element_size()
        alive.append(tensor)  # otherwise the address of a freed storage could be reused
        return tensor

    alive: list[Tensor] = []
    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, hooks, torch.enable_grad():
        module(torch.empty(shape, device=device, requires_grad=True))
    return PassCost(counter.get_total_flops(), sum(kept.values()))


@dataclass(frozen=True)
class StepCost:
    """One stage-1 training step, per image."""

    encoder: PassCost
    decoder: PassCost
    encodes: int
    decodes: float

    @property
    def flops(self) -> float:
        """Forward and backward; a backward pass costs twice its forward pass."""
        return 3 * (self.encodes * self.encoder.flops + self.decodes * self.decoder.flops)

    @property
    def saved_bytes(self) -> float:
        """Activations kept for the backward pass, fp32."""
        return self.encodes * self.encoder.saved_bytes + self.decodes * self.decoder.saved_bytes


def step_cost(vae: VQVAE, image_size: int, states: int, refocuses: bool) -> StepCost:
    """Cost of a step of `losses.objective`: every state is encoded; the reconstruction, a random state's anchor, and
    its prefix unless it is the sharp one, are decoded."""
    latent = image_size // 16
    return StepCost(
        encoder=pass_cost(encoder_of(vae), 1, 3, image_size, image_size),
        decoder=pass_cost(decoder_of(vae), 1, vae.Cvae, latent, latent),
        encodes=states if refocuses else 1,
        decodes=2 + (states - 1) / states if refocuses else 1,
    )


def memory_bytes(parameters: int, cost: StepCost, images: int, half: bool, averaged: bool) -> float:
    """A process's memory: fp32 weights, gradients, AdamW's moments, averaged weights, and activations of a micro-batch."""
    return parameters * 4 * (4 + averaged) + images * cost.saved_bytes * (0.5 if half else 1.0)
