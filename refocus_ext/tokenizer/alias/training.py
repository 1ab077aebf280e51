"""Trains the alias tokenizer alone, beside a structure tokenizer that is frozen and written as it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refocus_ext.engine.devices import autocast
from refocus_ext.engine.optimization import finite, gradient_norm, warmup_cosine
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

    def optimizer_groups(self) -> list[dict[str, Any]]:
        assert self.alias is not None
        return [{"params": list(self.alias.parameters()), "peak": self.recipe.alias_lr}]

    def train_step(self, step: int, batches: Sequence[Sample]) -> dict[str, float] | None:
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
        values = _mean([self._values(output) for output in outputs])
        values["grad_norm"] = gradient_norm(self.alias, self.recipe.clip)
        # fp16 overflows occasionally: the scaler then skips the step itself and lowers the scale
        (bad,) = self.world.any(
            not finite(values["loss"], *([] if self.scaler.is_enabled() else [values["grad_norm"]]))
        )
        if not bad:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if bad:
            return None
        self.averages.update(step, self.recipe.warm_autoencoder)
        values |= self.codebooks.update(step, [], outputs, self.optimizer)
        return values | {"lr": self.recipe.alias_lr * factor}

    def _alias_backward(self, x: Tensor) -> AliasOutput:
        with autocast(self.dtype, self.world.device):  # the quantizer disables it for itself
            output: AliasOutput = self.objective(x)
        self.scaler.scale(output.loss / self.plan.accumulate).backward()
        return output

    def _values(self, output: AliasOutput) -> dict[str, float]:
        explained = {f"explained{k}": value for k, value in enumerate(output.explained_K, start=1)}
        return {name: float(term.detach()) for name, term in ({"loss": output.loss} | output.terms | explained).items()}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
