"""Stage 1: trains the structure tokenizer on focus targets and the alias tokenizer beside it. `bash run.sh tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patches.model_parts import compile_autoencoder, last_decoder_weight
from patches.protocols import FocusedVQVAE, as_module
from refocus_ext.engine.devices import autocast, autocast_dtype, kind_of, loss_scaler
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import GuardedStep, decay_groups, gradient_norm, load_optimizer, warmup_cosine
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.engine.step_result import Scalars, StepResult, added
from refocus_ext.engine.training import RunPlan, Training
from refocus_ext.images.crops import Crops, Sample
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasOutput, AliasTokenizer, build_alias
from refocus_ext.tokenizer.averages import Averages
from refocus_ext.tokenizer.codebooks import Codebooks
from refocus_ext.tokenizer.losses.critic import Critic, NoCritic
from refocus_ext.tokenizer.losses.objective import StructureObjective, StructureOutput, TokenizerObjective
from refocus_ext.tokenizer.recipe import TokenizerRecipe
from refocus_ext.tokenizer.validation import Validation

LOSSES = ("loss", "alias/loss")


class TokenizerTraining(Training):
    """The loop of a stage-1 run; critic, codebooks, averages and validation are in their own files.

    Args:
        vae: focus-patched, in train mode, on its device.
        geometry: of the alias tokenizer; None trains no alias tokenizer.
        lpips: the perceptual loss, or None.
        backbone: frozen features of the discriminator, on their device; None for PatchGAN.
        validation: on rank 0, made with this run's averages; see `command.py`.
    """

    progress_values = ("loss", "recon")

    def __init__(
        self,
        plan: RunPlan,
        recipe: TokenizerRecipe,
        world: World,
        run: RunFolder | None,
        vae: FocusedVQVAE,
        geometry: AliasGeometry | None,
        lpips: nn.Module | None,
        data: Crops,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__(plan, world, run, data)
        self.precision = recipe.precision
        self.recipe, self.vae, self.lpips = recipe, vae, lpips
        self.validation: Validation | None = None
        torch.manual_seed(stream_seed(plan.seed, Stream.SECOND_WEIGHTS))
        self.alias: AliasTokenizer | None = build_alias(geometry, vae, world.device) if geometry else None
        self._shape_for_device()
        self.objective = world.parallel(self.whole_objective())
        adamw: dict[str, Any] = dict(
            betas=recipe.betas, weight_decay=recipe.weight_decay, fused=kind_of(world.device).fused_optimizer
        )
        self.dtype = autocast_dtype(recipe.precision, world.device)
        self.critic = self._build_critic(adamw, backbone)
        self.averages = Averages(vae, self.alias, recipe.ema)
        self.codebooks = Codebooks(plan, recipe, world, vae, self.alias, self.averages, data)
        self.optimizer = torch.optim.AdamW(self.optimizer_groups(recipe.weight_decay), lr=recipe.lr, **adamw)
        self.scaler = loss_scaler(self.dtype, world.device)
        self.guarded = GuardedStep(world, self.scaler, self.optimizer)

    def whole_objective(self) -> nn.Module:
        """One module around everything that is trained."""
        return TokenizerObjective(StructureObjective(self.vae, self.recipe.structure), self.alias)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Its parameters, with their peak learning rates; see `decay_groups`."""
        groups = decay_groups(as_module(self.vae), weight_decay, peak=self.recipe.lr)
        if self.alias is not None:
            groups += decay_groups(self.alias, weight_decay, peak=self.recipe.alias_lr)
        return groups

    def _shape_for_device(self) -> None:
        wanted = self.recipe.channels_last
        if wanted == "on" or (wanted == "auto" and kind_of(self.world.device).channels_last):
            self.vae.to(memory_format=torch.channels_last)
        if self.recipe.compile:  # in place, so that the state dict keeps upstream's names
            compile_autoencoder(self.vae)

    def _build_critic(self, adamw: dict[str, Any], backbone: nn.Module | None) -> NoCritic:
        recipe, size = self.recipe, self.vae.focus_pyramid.image_size
        if not recipe.critic.weight:
            return NoCritic()
        first = self.plan.steps_at(0)  # an extension does not end what has begun
        return Critic(recipe.critic, first, size, self.world, recipe.lr, recipe.clip, self.dtype, backbone, **adamw)

    # ------------------------------------------------------------------ one step

    def train_step(self, step: int, batches: Sequence[Sample]) -> StepResult:
        recipe, plan = self.recipe, self.plan
        self.codebooks.initialise(step)
        factor = warmup_cosine(step, plan.steps_at(step), recipe.warmup, recipe.lr_end)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        # every process takes the same focus state, although their noise differs
        state = stream_seed(plan.seed, Stream.FOCUS_STATE, step) % self.vae.focus_pyramid.states
        images = [batch.image.to(self.world.device, non_blocking=True) for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)
        outputs: list[StructureOutput] = []
        aliases: list[AliasOutput] = []
        values: Scalars = {}
        for number, x in enumerate(images):
            with self.world.sync_gradients(self.objective, number == len(images) - 1):
                out, alias, terms = self._backward(step, x, state)
            outputs.append(out)
            aliases += [alias] if alias else []
            added(values, terms, len(images))
        self.scaler.unscale_(self.optimizer)
        norms = {"grad_norm": gradient_norm(as_module(self.vae), recipe.clip)}
        if self.alias is not None and aliases:  # clipped separately, so that the tokenizers do not affect each other
            norms["alias/grad_norm"] = gradient_norm(self.alias, recipe.clip)
        losses = [value for name, value in values.items() if name in LOSSES and isinstance(value, Tensor)]
        bad, skipped = self.guarded.step(losses, list(norms.values()))
        if self.critic.active(step):
            values |= self.critic.train_step(images, [out.image for out in outputs], factor, skipped)
        self.averages.update(step, recipe.warm_autoencoder, self.codebooks.alias_start)
        values |= self.codebooks.update(step, outputs, aliases, self.optimizer)
        return StepResult(values | norms | {"lr": recipe.lr * factor}, bad)

    def _backward(
        self, step: int, x: Tensor, state: int
    ) -> tuple[StructureOutput, AliasOutput | None, dict[str, Tensor]]:
        """Forward and backward of one micro-batch; returns what was computed and the terms to log."""
        recipe = self.recipe
        quantize, train_alias = step >= recipe.warm_autoencoder, step >= self.codebooks.alias_start
        with autocast(self.dtype, self.world.device):  # the quantizer disables it for itself
            out, alias = self.objective(x, state, quantize=quantize, train_alias=train_alias)
            loss, sharp, terms = out.loss, out.recon, dict(out.terms)
            if self.lpips is not None:
                perceptual = self.lpips(out.image, x).mean()
                loss, sharp = loss + recipe.lpips * perceptual, sharp + recipe.lpips * perceptual
                terms["lpips"] = perceptual.detach()
            if self.critic.active(step):
                last_layer = last_decoder_weight(self.vae)
                term, shown = self.critic.generator_term(step, out.image, sharp, last_layer)
                loss, terms = loss + term, terms | shown
        terms = {"loss": loss.detach(), **terms}
        if alias is not None:
            terms |= {"alias/loss": alias.loss.detach()} | {f"alias/{name}": term for name, term in alias.terms.items()}
            terms |= {f"alias/explained{k}": value for k, value in enumerate(alias.explained_K, start=1)}
            loss = loss + alias.loss
        self.scaler.scale(loss / self.plan.accumulate).backward()
        return out, alias, terms

    # ------------------------------------------------------------------ monitoring

    def observe(self, progress: Progress) -> None:
        """Validation and pictures, by rank 0."""
        if self.validation is None:
            return
        quantized = self.step > self.recipe.warm_autoencoder
        if quantized:
            self.validation.prefixes(self.step, progress)
        if self.alias is not None and self.step > self.codebooks.alias_start:
            self.validation.alias(self.step, progress)
        self.validation.picture(self.step, quantized)

    def finish(self) -> None:
        assert self.validation is not None
        print("\n".join(self.validation.closing_lines()))

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        state = {
            "vae": self.vae.state_dict(),
            "record_hit": self.vae.quantize.record_hit,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.alias is not None:
            state["alias"] = self.alias.state_dict()
        return state | self.codebooks.state_dict() | self.averages.state_dict() | self.critic.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"], strict=True)
        self.vae.quantize.record_hit = state["record_hit"]
        load_optimizer(self.optimizer, state["optimizer"], self.optimizer_groups(0.0))
        if state["scaler"]:  # empty if the run was in another precision so far
            self.scaler.load_state_dict(state["scaler"])
        if self.alias is not None:
            self.alias.load_state_dict(state["alias"], strict=True)
        for part in (self.codebooks, self.averages, self.critic):
            part.load_state_dict(state)

    def weights(self) -> dict[str, dict[str, Any]]:
        """vae.pth, exactly upstream's state dict, and alias.pth."""
        files = {"vae.pth": self.averages.vae} | ({"alias.pth": self.averages.alias} if self.alias is not None else {})
        return {name: module.state_dict() for name, module in files.items()}
