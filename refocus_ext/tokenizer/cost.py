"""What a stage-1 step costs before it runs: FLOPs, and everything that it keeps in memory, counted for the run's own device.

Each distinct pass is counted once: the encoder, the decoder, LPIPS, the discriminator, and the losses around them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from patches import Focus, patched
from patches.model_parts import decoder_of, encoder_of, last_decoder_weight
from patches.protocols import FocusedVQVAE, as_module
from refocus_ext.engine.memory.pass_cost import Input, PassCost, pass_cost
from refocus_ext.engine.memory.plan import MemoryNeed
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokenizer.losses.adversarial import Adversary
from refocus_ext.tokenizer.losses.objective import StructureObjective, TokenizerObjective
from refocus_ext.tokenizer.recipe import StructureWeights

MOMENTS = 2  # of AdamW
FP32 = 4  # bytes
NOTHING = PassCost()


@dataclass(frozen=True)
class Modules:
    """What takes part in a step, on any device; the alias tokenizer and the critic may be on "meta"."""

    vae: FocusedVQVAE
    alias: AliasTokenizer | None = None
    lpips: nn.Module | None = None
    critic: Adversary | None = None


@dataclass(frozen=True)
class StepCost:
    """One stage-1 training step, per image.

    Args:
        encoder, decoder: one pass of each.
        losses: everything between and after them: quantizer, prefixes, pixel losses, alias tokenizer.
        perceptual: LPIPS; only its pass of the reconstruction keeps activations, as no gradient reaches the image's.
        adversary: the discriminator's pass in the tokenizer's loss.
        critic: the discriminator's own step, which comes when all others have been freed.
        encodes, decodes: the most passes of a step, a smaller view counted by its area; at the sharp focus state it decodes
            once less.
        mean_decodes: on average over focus states.
        view_bytes, latent_bytes, features_bytes: an image, a latent, and the input of the decoder's last layer, which
            --grad-checkpoint keeps in place of a pass.
    """

    encoder: PassCost
    decoder: PassCost
    losses: PassCost = NOTHING
    perceptual: PassCost = NOTHING
    adversary: PassCost = NOTHING
    critic: PassCost = NOTHING
    encodes: float = 0
    decodes: float = 0
    mean_decodes: float = 0.0
    view_bytes: int = 0
    latent_bytes: int = 0
    features_bytes: int = 0

    @property
    def flops(self) -> float:
        """Of encoder and decoder, forward and backward; a backward pass costs twice its forward pass."""
        return 3 * (self.encodes * self.encoder.flops + self.mean_decodes * self.decoder.flops)

    @property
    def others(self) -> tuple[PassCost, ...]:
        """What a step keeps beside the passes of encoder and decoder."""
        return self.losses, self.perceptual, self.adversary

    @property
    def saved_bytes(self) -> int:
        """Kept at the beginning of the backward pass."""
        passes = self.encodes * self.encoder.saved_bytes + self.decodes * self.decoder.saved_bytes
        return int(passes) + sum(cost.saved_bytes for cost in self.others)

    @property
    def recomputed_bytes(self) -> int:
        """The most that is kept with --grad-checkpoint: LPIPS and critic, which are freed first, or one pass."""
        inputs = self.encodes * self.view_bytes + self.decodes * (self.latent_bytes + self.features_bytes)
        one_pass = max(bool(self.encodes) * self.encoder.saved_bytes, bool(self.decodes) * self.decoder.saved_bytes)
        return (
            int(inputs)
            + self.losses.saved_bytes
            + max(self.perceptual.saved_bytes + self.adversary.saved_bytes, one_pass)
        )

    def peak_bytes(self, checkpointed: bool = False) -> int:
        """The most that a step holds per image of a micro-batch: what is kept, and what its backward pass works with."""
        kept = self.recomputed_bytes if checkpointed else self.saved_bytes
        largest = max(cost.working_bytes for cost in (self.encoder, self.decoder, *self.others))
        return max(kept + largest, self.critic.saved_bytes + self.critic.working_bytes)

    @property
    def fixed_bytes(self) -> int:
        """Kept for any number of images: weights that autocast has cast, once for all passes of a micro-batch."""
        return sum(cost.fixed_bytes for cost in (self.encoder, self.decoder, *self.others))


def modules_of(
    vae: FocusedVQVAE,
    geometry: AliasGeometry | None,
    lpips: nn.Module | None,
    critic: bool,
    backbone: nn.Module | None = None,
    augments: bool = False,
    bcr: float = 0.0,
) -> Modules:
    """What takes part in a step; what is built later than the plan is an outline here.

    Args:
        backbone, augments, bcr: as of `Adversary`.
    """
    with torch.device("meta"):
        # a shared codebook belongs to the VQVAE; here the alias tokenizer has one of its size
        alias = AliasTokenizer(replace(geometry, codebook="own")) if geometry else None
        size = vae.focus_pyramid.image_size
        # in eval mode, in which it draws no view
        adversary = Adversary(size, backbone=backbone, augments=augments, bcr=bcr).eval() if critic else None
    return Modules(vae, alias, lpips, adversary)


def step_cost(
    modules: Modules,
    weights: StructureWeights,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> StepCost:
    """Cost of a step of `losses.objective` and of what `training.TokenizerTraining` adds to its loss.

    Args:
        device, dtype: as of `pass_cost`.
        channels_last: memory layout of the VQVAE.
    """
    vae, pyramid = modules.vae, modules.vae.focus_pyramid
    count = partial(pass_cost, device=device, dtype=dtype)
    size, latent = pyramid.image_size, (vae.Cvae, pyramid.latent_size, pyramid.latent_size)
    image, reconstruction = Input((3, size, size)), Input((3, size, size), grad=True)
    frozen = not any(parameter.requires_grad for parameter in vae.parameters())
    encoder = decoder = NOTHING
    if not frozen:
        encoder = count(encoder_of(vae), image, channels_last=channels_last)
        decoder = count(decoder_of(vae), Input(latent, grad=True), channels_last=channels_last)
    losses, calls = _losses(modules, weights, count, image, frozen)
    perceptual = adversary = critic = NOTHING
    if modules.lpips is not None:
        perceptual = count(modules.lpips, reconstruction, image)
    if modules.critic is not None:
        adversary = count(modules.critic, reconstruction, call=Adversary.generator_loss)
        critic = count(modules.critic, image, image)
    itemsize = torch.empty((), dtype=dtype).element_size()
    return StepCost(
        encoder=encoder,
        decoder=decoder,
        losses=losses,
        perceptual=perceptual,
        adversary=adversary,
        critic=critic,
        encodes=calls["encode"],
        decodes=max(_decodes(pyramid, weights)) if pyramid.refocuses and not frozen else calls["decode"],
        mean_decodes=fmean(_decodes(pyramid, weights)) if pyramid.refocuses and not frozen else calls["decode"],
        view_bytes=FP32 * 3 * size * size,
        latent_bytes=FP32 * vae.Cvae * pyramid.latent_size**2,
        features_bytes=itemsize * last_decoder_weight(vae).shape[1] * size * size,
    )


# ------------------------------------------------------------------------------------------------ losses without passes


class _Outline(FocusPyramid):
    """A pyramid whose views have only their shapes: the real one keeps tensors in a cache, in which fake ones must not be."""

    def focused(self, x_BCHH: Tensor, k: int) -> Tensor:
        return x_BCHH if k == self.states - 1 or not self.refocuses else torch.empty_like(x_BCHH)

    def alias(self, x_BCHH: Tensor, k: int) -> Tensor:
        return torch.empty_like(self.decimated(x_BCHH, k))


def _decodes(pyramid: FocusPyramid, weights: StructureWeights) -> list[float]:
    """Passes of the decoder in a step of each focus state: the image, the state's anchor, and its prefix unless it is sharp."""
    anchor, prefix = bool(weights.anchor), bool(weights.prefix)
    return [1 + (anchor + (prefix and k < pyramid.states - 1)) / d**2 for k, d in enumerate(pyramid.subsampling)]


def _losses(
    modules: Modules, weights: StructureWeights, count: Callable[..., PassCost], image: Input, frozen: bool
) -> tuple[PassCost, dict[str, float]]:
    """The step of the blurriest focus state without the passes of encoder and decoder, and the number of these passes."""
    vae, calls = modules.vae, {"encode": 0.0, "decode": 0.0}
    outline = _Outline(**vae.focus_pyramid.to_dict())
    with patched(vae, Focus(outline)), _without_passes(vae, calls):
        if frozen:
            assert modules.alias is not None
            return count(_AliasAlone(modules.alias, outline), image), calls
        objective = TokenizerObjective(StructureObjective(vae, weights), modules.alias)
        with _evaluating(objective):
            call = partial(_step, quantize=True, train_alias=True)
            return count(objective, image, call=call), calls


def _step(objective: nn.Module, x_B3HW: Tensor, **options: bool) -> Any:
    return objective(x_B3HW, 0, **options)


class _AliasAlone(nn.Module):
    def __init__(self, alias: AliasTokenizer, pyramid: FocusPyramid) -> None:
        super().__init__()
        self.alias, self.pyramid = alias.eval(), pyramid

    def forward(self, x_B3HW: Tensor) -> Any:
        return self.alias([self.pyramid.alias(x_B3HW, k) for k in range(self.pyramid.states - 1)])


@contextlib.contextmanager
def _without_passes(vae: FocusedVQVAE, calls: dict[str, float]) -> Iterator[None]:
    """Inside, encoder and decoder return tensors that were not computed."""
    model, pyramid = as_module(vae), vae.focus_pyramid
    image, latent = pyramid.image_size, pyramid.latent_size
    # method: the pass, channels of its result, sides of its input and result at full size
    passes = {"encode_view": ("encode", vae.Cvae, image, latent), "decode": ("decode", 3, latent, image)}

    def instead(name: str, channels: int, full: int, result: int) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            side = x.shape[-1]
            calls[name] += (side / full) ** 2
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            size = result * side // full
            return x.new_empty(len(x), channels, size, size, dtype=dtype).requires_grad_()

        return call

    for method, shapes in passes.items():
        model.__dict__[method] = instead(*shapes)
    try:
        yield
    finally:
        for method in passes:
            del model.__dict__[method]


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module updates no running mean, for which processes would communicate."""
    training = module.training
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
        module.training = training


# ------------------------------------------------------------------------------------------------ memory


def memory_need(modules: Modules, cost: StepCost, averaged: bool, processes: int, checkpointed: bool) -> MemoryNeed:
    """A process's memory: weights, gradients, AdamW's moments, averaged weights, and the activations of a micro-batch.

    Args:
        averaged: whether the run has averaged weights.
        processes: several keep their gradients twice, in DistributedDataParallel's buckets.
        checkpointed: --grad-checkpoint.
    """
    copies = MOMENTS + (processes > 1)
    trained = [as_module(modules.vae), *([modules.alias] if modules.alias else [])]
    critics = [modules.critic] if modules.critic else []
    frozen = [modules.lpips] if modules.lpips else []
    weights = sum(map(_bytes, (*trained, *critics, *frozen)))
    moments = copies * sum(map(_trained_bytes, (*trained, *critics))) + averaged * sum(map(_trained_bytes, trained))
    gradients = sum(map(_trained_bytes, (*trained, *critics)))
    fixed = weights + moments + cost.fixed_bytes
    held = 2 * cost.view_bytes  # every image of the step and its reconstruction, for the critic and the codebooks
    if checkpointed:  # the last pass is recomputed beside all gradients
        return MemoryNeed(fixed + gradients, cost.peak_bytes(checkpointed), held=held)
    return MemoryNeed(fixed, cost.peak_bytes(), gradients, held)


def _bytes(module: nn.Module) -> int:
    return FP32 * sum(parameter.numel() for parameter in module.parameters())


def _trained_bytes(module: nn.Module) -> int:
    return FP32 * sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
