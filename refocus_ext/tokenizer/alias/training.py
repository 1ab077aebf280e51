"""Trains the alias tokenizer alone, beside a structure tokenizer that is frozen and written as it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refocus_ext.engine.devices import autocast
from refocus_ext.engine.optimization import decay_groups, gradient_norm, warmup_cosine
from refocus_ext.engine.step_result import Scalars, StepResult, added
from refocus_ext.images.crops import Sample
from refocus_ext.optics.pyramid import FocusPyramid, alias_views
from refocus_ext.tokenizer.alias.tokenizer import AliasOutput, AliasTokenizer
from refocus_ext.tokenizer.training import TokenizerTraining


class AliasObjective(nn.Module):
    """The alias tokenizer's loss on images, as one module for DistributedDataParallel."""

    def __init__(self, pyramid: FocusPyramid, alias: AliasTokenizer) -> None:
        super().__init__()
        self.pyramid, self.alias = pyramid, alias

    def forward(self, x_B3HW: Tensor) -> AliasOutput:
        return self.alias(alias_views(self.pyramid, x_B3HW))


class AliasTraining(TokenizerTraining):
    """Modifications of the loop of a stage-1 run:
    - the VQVAE comes frozen and in eval mode; its weights, buffers and codebook never change
    - a step trains the alias tokenizer alone, by the same loss and rates
    """

    progress_values = ("loss", "explained1")

    def whole_objective(self) -> nn.Module:
        assert self.alias is not None
        return AliasObjective(self.vae.focus_pyramid, self.alias)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        assert self.alias is not None
        return decay_groups(self.alias, weight_decay, peak=self.recipe.alias_lr)

    def train_step(self, step: int, batches: Sequence[Sample]) -> StepResult:
        assert self.alias is not None
        self.codebooks.initialise(step)
        factor = warmup_cosine(step, self.plan.steps, self.recipe.warmup, self.recipe.lr_end)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        outputs: list[AliasOutput] = []
        for number, batch in enumerate(batches):
            with self.world.sync_gradients(self.objective, number == len(batches) - 1):
                outputs.append(self._alias_backward(batch.image.to(self.world.device, non_blocking=True)))
        self.scaler.unscale_(self.optimizer)
        values: Scalars = {}
        for output in outputs:
            added(values, self._values(output), len(outputs))
        norm = gradient_norm(self.alias, self.recipe.clip)
        bad, _ = self.guarded.step([output.loss for output in outputs], [norm])
        self.averages.update(step, self.recipe.warm_autoencoder, self.codebooks.alias_start)
        values |= self.codebooks.update(step, [], outputs, self.optimizer)
        return StepResult(values | {"grad_norm": norm, "lr": self.recipe.alias_lr * factor}, bad)

    def _alias_backward(self, x: Tensor) -> AliasOutput:
        with autocast(self.dtype, self.world.device):  # the quantizer disables it for itself
            output: AliasOutput = self.objective(x)
        self.scaler.scale(output.loss / self.plan.accumulate).backward()
        return output

    def _values(self, output: AliasOutput) -> dict[str, Tensor]:
        explained = {f"explained{k}": value for k, value in enumerate(output.explained_K, start=1)}
        return {"loss": output.loss} | output.terms | explained
