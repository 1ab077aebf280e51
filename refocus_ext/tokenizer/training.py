"""Stage 1: trains the structure tokenizer on focus targets and the alias tokenizer beside it. `bash run.sh tokenizer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from refocus_ext.engine.devices import autocast_dtype
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import finite, gradient_norm, warmup_cosine
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.engine.training import Training
from refocus_ext.images.crops import Crops, Sample
from refocus_ext.images.order import StepBatches, spread
from refocus_ext.images.source import ImageSource
from refocus_ext.optics.pyramid import alias_views
from refocus_ext.seeds import derived_seed
from refocus_ext.tokenizer.alias.explained_variance import ExplainedVariance, explained_warnings
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasOutput, build_alias
from refocus_ext.tokenizer.codebooks import CodeRevival, initialise_codebook
from refocus_ext.tokenizer.objective import StructureObjective, StructureOutput, StructureWeights, TokenizerObjective
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.picture import draw_alias, draw_prefixes
from refocus_ext.tokenizer.validation import PrefixReport, validate
from refocus_ext.vector_quantization import code_health


class TokenizerTraining(Training):
    """Models, optimizers and data of a stage-1 run."""

    progress_values = ("loss", "recon")

    def __init__(
        self,
        options: TokenizerOptions,
        here: World,
        run: RunFolder | None,
        vae: Any,
        geometry: AliasGeometry | None,
        lpips: nn.Module | None,
        train: ImageSource,
        val: ImageSource,
    ) -> None:
        data = Crops(train, options.image_size, scale=options.crop_scale, hflip=options.hflip, seed=options.seed)
        super().__init__(options, here, run, data)
        self.val_data = Crops(val, options.image_size, scale=options.crop_scale, random=False)
        self.vae, self.lpips = vae, lpips
        torch.manual_seed(derived_seed(options.seed, 8))
        self.alias: Any = build_alias(geometry, vae, here.device) if geometry else None
        self.report: PrefixReport | None = None
        self.explained: list[float] = []
        self._build_networks()
        self._build_optimizers()

    # ------------------------------------------------------------------ building

    def _build_networks(self) -> None:
        options, device = self.options, self.world.device
        weights = StructureWeights(options.l1, options.l2, options.commitment, options.prefix, options.anchor)
        if options.channels_last == "on" or (options.channels_last == "auto" and device.type == "cuda"):
            self.vae.to(memory_format=torch.channels_last)
        if options.compile:  # in place, so that the state dict keeps upstream's names
            self.vae.encoder.compile()
            self.vae.decoder.compile()
        self.objective = self.world.parallel(TokenizerObjective(StructureObjective(self.vae, weights), self.alias))
        self.adversary: Any = None
        if options.gan:
            from refocus_ext.tokenizer.adversarial import Adversary

            self.adversary = Adversary(options.image_size, lecam=options.lecam).to(device)
            self.parallel_adversary = self.world.parallel(self.adversary)
        self.ema = ModelEmaV3(self.vae, decay=options.ema, use_warmup=True) if options.ema else None
        self.alias_ema = (
            ModelEmaV3(self.alias, decay=options.ema, use_warmup=True) if options.ema and self.alias else None
        )
        if self.alias_ema is not None and options.alias_codebook == "shared":
            self.alias_ema.module.share(self.finished_vae.quantize.embedding)
        self.revival = CodeRevival(self.vae.quantize)
        self.alias_revival = CodeRevival(self.alias) if self.alias and options.alias_codebook == "own" else None

    def _build_optimizers(self) -> None:
        options, fused = self.options, self.world.device.type == "cuda"
        adamw: dict[str, Any] = dict(
            betas=(options.beta1, options.beta2), weight_decay=options.weight_decay, fused=fused
        )
        groups = [{"params": list(self.vae.parameters()), "peak": options.lr}]
        if self.alias is not None:
            groups.append({"params": list(self.alias.parameters()), "peak": options.alias_lr})
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, **adamw)
        self.critic_optimizer = (
            torch.optim.AdamW(self.adversary.parameters(), lr=options.lr, **adamw) if options.gan else None
        )
        self.dtype = autocast_dtype(options.precision, self.world.device)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """Mixed precision for the networks; the quantizer switches it off for itself."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.world.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    # ------------------------------------------------------------------ one step

    def train_step(self, step: int, batches: Sequence[Sample]) -> dict[str, float] | None:
        options = self.options
        self._initialise(step)
        factor = warmup_cosine(step, options.steps, options.warmup, options.lr_end)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        # every process takes the same focus state, whatever its noise
        state = derived_seed(options.seed, 7, step) % options.focus_states
        images = [batch.image.to(self.world.device, non_blocking=True) for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)
        outputs: list[StructureOutput] = []
        aliases: list[AliasOutput] = []
        values: dict[str, float] = {}
        for number, x in enumerate(images):
            with self._no_sync_unless(self.objective, number == len(images) - 1):
                out, alias, terms = self._backward(step, x, state)
            outputs.append(out)
            aliases += [alias] if alias else []
            for name, term in terms.items():
                values[name] = values.get(name, 0.0) + float(term) / len(images)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.vae, options.clip)
        if aliases:  # clipped apart, so that neither tokenizer feels the other
            values["alias/grad_norm"] = gradient_norm(self.alias, options.clip)
        # fp16 overflows now and then: its scaler skips such a step by itself and lowers the scale
        norms = [] if self.scaler.is_enabled() else [norm, values.get("alias/grad_norm", 0.0)]
        (bad,) = self.world.any(not finite(values["loss"], values.get("alias/loss", 0.0), *norms))
        if bad:
            self.scaler.update()
            return None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._adversarial(step):
            values |= self._critic_step(images, [out.image for out in outputs], factor)
        self._after_update(step, outputs, aliases, values)
        return values | {"lr": options.lr * factor, "grad_norm": norm}

    def _backward(
        self, step: int, x: Tensor, state: int
    ) -> tuple[StructureOutput, AliasOutput | None, dict[str, Tensor]]:
        """Forward and backward of one micro-batch; returns what was computed and the terms to log."""
        with self.autocast():
            out, alias = self.objective(
                x, state, quantize=step >= self.options.warm_autoencoder, train_alias=step >= self.alias_start
            )
            loss, sharp, terms = out.loss, out.recon, dict(out.terms)
            if self.lpips is not None:
                perceptual = self.lpips(out.image, x).mean()
                loss, sharp = loss + self.options.lpips * perceptual, sharp + self.options.lpips * perceptual
                terms["lpips"] = perceptual.detach()
            if self._adversarial(step):
                term, terms["gan"], terms["gan_weight"] = self._adversarial_term(step, out, sharp)
                loss = loss + term
        terms = {"loss": loss.detach(), **terms}
        if alias is not None:
            terms |= {"alias/loss": alias.loss.detach()} | {f"alias/{name}": term for name, term in alias.terms.items()}
            terms |= {f"alias/explained{k}": value for k, value in enumerate(alias.explained_K, start=1)}
            loss = loss + alias.loss
        self.scaler.scale(loss / self.options.accumulate).backward()
        return out, alias, terms

    def _adversarial(self, step: int) -> bool:
        return self.adversary is not None and step >= self.options.gan_start * self.options.steps

    def _adversarial_term(self, step: int, out: StructureOutput, sharp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's adversarial loss, weighted so that its gradient at the decoder's last layer matches that of
        the sharp reconstruction's other losses (VQGAN's adaptive weight)."""
        from refocus_ext.tokenizer.adversarial import adaptive_weight

        options = self.options
        adversarial = self.adversary.generator_loss(out.image)
        weight = adaptive_weight(sharp, adversarial, self.vae.decoder.conv_out.weight, floor=options.gan_floor)
        grown = min(1.0, (step - options.gan_start * options.steps + 1) / options.gan_warmup)
        return options.gan * grown * weight * adversarial, adversarial.detach(), weight.detach()

    def _critic_step(self, real: list[Tensor], fake: list[Tensor], factor: float) -> dict[str, float]:
        """One step of the discriminator on the same images; skipped on all processes if it is not finite on one."""
        optimizer, critic = self.critic_optimizer, self.parallel_adversary
        assert optimizer is not None
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr * factor
        optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for number, (x, image) in enumerate(zip(real, fake, strict=True)):
            with self._no_sync_unless(critic, number == len(real) - 1), self.autocast():
                loss, terms = critic(x, image.detach())
            (loss / len(real)).backward()
            values = {name: values.get(name, 0.0) + float(term) / len(real) for name, term in terms.items()}
        norm = gradient_norm(self.adversary, self.options.clip)
        (bad,) = self.world.any(not finite(norm))
        if not bad:
            optimizer.step()
        return values | {"critic_grad_norm": norm if not bad else 0.0}

    def _no_sync_unless(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between processes with the last micro-batch only."""
        return contextlib.nullcontext() if last or self.world.size == 1 else module.no_sync()  # type: ignore[operator]

    def _after_update(
        self, step: int, outputs: Sequence[StructureOutput], aliases: Sequence[AliasOutput], values: dict[str, float]
    ) -> None:
        """Averaged weights, and dead codes brought back to life."""
        if self.ema is not None:
            self.ema.update(self.vae, step=max(0, step - self.options.warm_autoencoder))
        if self.alias_ema is not None:
            self.alias_ema.update(self.alias, step=step)
        if not self.options.revive:
            return
        idx, residuals = [i for out in outputs for i in out.idx_S], [r for out in outputs for r in out.residual_S]
        if idx:
            self._revive(
                step, "revived", self.revival, idx, residuals, (self.vae.quantize, self.finished_vae.quantize), values
            )
        if aliases and self.alias_revival:
            idx, points = [i for out in aliases for i in out.idx_K], [p for out in aliases for p in out.points_K]
            pair = (self.alias, self.finished_alias)
            self._revive(step, "alias/revived", self.alias_revival, idx, points, pair, values)

    def _revive(
        self,
        step: int,
        name: str,
        revival: CodeRevival,
        idx: list[Tensor],
        pool: list[Tensor],
        quantizers: tuple[Any, Any],
        values: dict[str, float],
    ) -> None:
        """Counts hits, and every `--revive` steps replaces the codes without any, in the averaged weights as well."""
        revival.count(idx)
        # none in the last fifth: a code revived there would not be trained
        if (step + 1) % self.options.revive or step + 1 > 0.8 * self.options.steps:
            return
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, 6, step))
        revived = revival.revive(pool, self.optimizer, generator, self.world)
        trained, averaged = (quantizer.embedding.weight.data for quantizer in quantizers)
        averaged[revived] = trained[revived]
        values[name] = float(len(revived))

    # ------------------------------------------------------------------ codebooks from data

    @property
    def alias_start(self) -> int:
        """The step from which the alias tokenizer trains: with a shared codebook not before there is one."""
        return self.options.warm_autoencoder if self.options.alias_codebook == "shared" else 0

    @torch.no_grad()
    def _initialise(self, step: int) -> None:
        """At its step, fills a codebook from training crops, the same on every process."""
        options = self.options
        generator = torch.Generator().manual_seed(derived_seed(options.seed, 5))
        if step == options.warm_autoencoder and not options.init:
            crops = self._sample_crops(max(32, 2 * options.codebook_size // options.patch_nums[-1] ** 2))
            initialise_codebook(self.vae.quantize, self._targets(crops), generator)
            self.world.broadcast(self.vae.quantize.embedding.weight.data)
        if step == self.alias_start and self.alias is not None:
            views = [alias_views(self.vae.focus_pyramid, x) for x in self._sample_crops(512)]
            self.alias.initialise([torch.cat(parts) for parts in zip(*views, strict=True)], generator)
            for tensor in self.alias.state_dict().values():
                self.world.broadcast(tensor)

    def _sample_crops(self, count: int) -> Iterator[Tensor]:
        """Batches of training crops, always the same ones, no larger than a training step's."""
        options = self.options
        (keys,) = StepBatches(len(self.data), count, start=0, stop=1, seed=derived_seed(options.seed, 4))
        for chunk in _chunks(keys, max(1, options.batch_size // options.accumulate // self.world.size)):
            yield torch.stack([self.data[key].image for key in chunk]).to(self.world.device)

    def _targets(self, crops: Iterable[Tensor]) -> list[Tensor]:
        """Focus targets of the crops, K times (N,C,n,n)."""
        self.vae.eval()
        encoded = [self.vae.encode_targets(x) for x in crops]
        self.vae.train()
        lists = [[T] * self.options.focus_states if isinstance(T, Tensor) else T for T in encoded]
        return [torch.cat(parts) for parts in zip(*lists, strict=True)]

    # ------------------------------------------------------------------ watching

    @property
    def finished_vae(self) -> Any:
        """The weights that are validated and written: the averaged ones where there are."""
        return self.vae if self.ema is None else self.ema.module

    @property
    def finished_alias(self) -> Any:
        """Likewise of the alias tokenizer; None without one."""
        return self.alias if self.alias_ema is None else self.alias_ema.module

    def observe(self, progress: Progress) -> None:
        """Validation and picture, by rank 0."""
        if not self.run:
            return
        quantized = self.step > self.options.warm_autoencoder
        if quantized:
            self.report = report = validate(self.finished_vae, self._val_batches())
            self.run.log(self.step, report.flat(), "val/")
            progress.say(f"step {self.step}: {summary(report, self.options.codebook_size)}")
            for warning in report.collapsed(self.options.codebook_size):
                progress.say(f"warning: {warning}")
        if self.alias is not None and self.step > self.alias_start:
            self._observe_alias(progress)
        draw_prefixes(
            self.run,
            self.finished_vae,
            self.val_data,
            self.step,
            self.options.steps,
            quantized,
            self.options.val_images,
        )

    def _observe_alias(self, progress: Progress) -> None:
        """Held-out explained variance of the alias tokens, and their picture."""
        alias, pyramid = self.finished_alias.eval(), self.vae.focus_pyramid
        total, idx = ExplainedVariance(pyramid.states - 1), []
        with torch.no_grad():
            for x in self._val_batches():
                views = alias_views(pyramid, x)
                idx.append(alias.tokens(views))
                total.update(views, alias.reconstruct(idx[-1]))
        self.alias.train()
        self.explained = total.compute()
        health = [
            code_health(torch.cat([t.flatten() for t in state]), alias.vocab_size) for state in zip(*idx, strict=True)
        ]
        assert self.run is not None
        for k, (explained, (usage, perplexity)) in enumerate(zip(self.explained, health, strict=True), start=1):
            names = {f"alias_explained{k}": explained, f"alias_usage{k}": usage, f"alias_perplexity{k}": perplexity}
            self.run.log(self.step, names, "val/")
        shown = " ".join(f"{100 * value:.0f}%" for value in self.explained)
        progress.say(f"step {self.step}: alias tokens explain {shown} of the residuals' variance")
        draw_alias(self.run, alias, pyramid, self.val_data, self.step, self.options.steps)

    def _val_batches(self) -> Iterator[Tensor]:
        for chunk in _chunks(
            spread(range(len(self.val_data)), self.options.val_images), min(32, self.options.batch_size)
        ):
            yield torch.stack([self.val_data[index].image for index in chunk]).to(self.world.device)

    def finish(self) -> None:
        report = self.report
        assert self.run is not None and report is not None
        print(f"\ntrained {self.options.steps} steps; the run is in {self.run.path}:")
        print("  picture.png    original, focus states and their reconstructions")
        print("  vae.pth        the structure tokenizer as a plain upstream state dict")
        if self.alias is not None:
            print("  alias.png      alias residuals and what their tokens say of them")
            print("  alias.pth      the alias tokenizer")
        print("  metrics.jsonl  every step; `tensorboard --logdir` shows the same\n")
        print("focus state   prefix against F_k   prefix against x")
        for k, (focus, sharp) in enumerate(zip(report.psnr_focus_K, report.psnr_sharp_K, strict=True), start=1):
            print(f"{k:>11}   {focus:>13.2f} dB   {sharp:>13.2f} dB")
        if self.alias is not None:
            shown = ", ".join(f"{100 * value:.1f}%" for value in self.explained)
            where = "held-out images" if self.options.data else "centre crops of its own photographs"
            views = " and ".join(f"A{k}" for k in range(1, len(self.explained) + 1))
            print(f"\nalias tokens explain {shown} of the variance of {views} on {where}")
            for warning in explained_warnings(self.explained, self.options.alias_stride):
                print(f"warning: {warning}")

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        state = {
            "vae": self.vae.state_dict(),
            "record_hit": self.vae.quantize.record_hit,
            "optimizer": self.optimizer.state_dict(),
            "revival": self.revival.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        if self.alias is not None:
            state["alias"] = self.alias.state_dict()
        if self.alias_ema is not None:
            state["alias_ema"] = self.alias_ema.module.state_dict()
        if self.alias_revival is not None:
            state["alias_revival"] = self.alias_revival.state_dict()
        if self.adversary is not None:
            assert self.critic_optimizer is not None
            state |= {"adversary": self.adversary.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"], strict=True)
        self.vae.quantize.record_hit = state["record_hit"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.revival.load_state_dict(state["revival"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"], strict=True)
        if self.alias is not None:
            self.alias.load_state_dict(state["alias"], strict=True)
        if self.alias_ema is not None:
            self.alias_ema.module.load_state_dict(state["alias_ema"], strict=True)
        if self.alias_revival is not None:
            self.alias_revival.load_state_dict(state["alias_revival"])
        if self.adversary is not None:
            assert self.critic_optimizer is not None
            self.adversary.load_state_dict(state["adversary"], strict=True)
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])

    def weights(self) -> dict[str, dict[str, Any]]:
        """vae.pth, exactly upstream's state dict, and alias.pth."""
        files = {"vae.pth": self.finished_vae} | ({"alias.pth": self.finished_alias} if self.alias is not None else {})
        return {name: module.state_dict() for name, module in files.items()}


def summary(report: PrefixReport, codes: int) -> str:
    """'prefixes against F_k 20.1 21.0 22.3 dB; codes in use per scale 12 60 300 of 512'."""
    focus = " ".join(f"{value:.1f}" for value in report.psnr_focus_K)
    usage = " ".join(f"{round(codes * value / 100)}" for value in report.usage_S)
    return f"prefixes against F_k {focus} dB; codes in use per scale {usage} of {codes}"


def _chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
