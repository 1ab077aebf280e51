"""Stage 2: trains the student, a vanilla VAR on focus tokens, and its alias-gate teacher. `bash run.sh distill`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patches.protocols import as_module
from refocus_ext.counting import counted
from refocus_ext.distill.losses import Terms, var_report
from refocus_ext.distill.networks import Networks, adamw
from refocus_ext.distill.objective import DistillObjective, TokenEmbedding
from refocus_ext.distill.picture import draw_samples, sample_classes
from refocus_ext.distill.recipe import (
    CLIP,
    DistillRecipe,
    cosine_weight_decay,
    final_lr_factor,
    final_weight_decay,
    lin0,
    set_lr_and_decay,
    warmup_steps,
)
from refocus_ext.distill.recognition import BATCH, EACH, Recognized, one_of_each, recognized
from refocus_ext.distill.teacher.shown import CODE, CONSTANT, NO_ALIASES, OWN, SHOWN_IN_TRAINING, shown_in_training
from refocus_ext.distill.validation import DistillReport, ValidationTokens, validate
from refocus_ext.engine import sharding
from refocus_ext.engine.devices import autocast, autocast_dtype, loss_scaler
from refocus_ext.engine.distributed import World
from refocus_ext.engine.optimization import GuardedStep, gradient_norm
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.engine.sharded_checkpoints import ShardedSaver, copied
from refocus_ext.engine.step_result import StepResult
from refocus_ext.engine.training import RunPlan, Training, TrainingData
from refocus_ext.images.class_numbers import numbers_in_use
from refocus_ext.images.crops import Sample
from refocus_ext.images.order import spread
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.sampling.sampler import for_pictures
from refocus_ext.tokens.tokenize import pick_precision, tokenize, tokenize_images
from refocus_ext.tokens.trained_tokenizer import Tokenizer

VALIDATION_BATCH = 16


class DistillTraining(Training):
    """Networks, optimizers and tokens of a stage-2 run."""

    progress_values = ("loss", "ce_student", "ce_teacher")

    def __init__(
        self,
        plan: RunPlan,
        recipe: DistillRecipe,
        world: World,
        run: RunFolder | None,
        tokenizer: Tokenizer,
        networks: Networks,
        data: TrainingData,
        val: ImageSource,
    ) -> None:
        super().__init__(plan, world, run, data)
        self.precision = recipe.precision
        self.recipe, self.tokenizer, self.classes = recipe, tokenizer, data.images.classes
        self.var, self.teacher = networks
        self.embed = TokenEmbedding(tokenizer.vae, tokenizer.alias)
        self.tokens_precision = pick_precision(recipe.tokens_precision, world.device)
        self.validation = self._validation_tokens(val)
        self.report: DistillReport | None = None
        self.dtype = autocast_dtype(recipe.precision, world.device)
        self.scaler = loss_scaler(self.dtype, world.device)
        self.sharded = recipe.sharded and world.size > 1
        if self.sharded:
            self.saver = ShardedSaver(plan.out / "checkpoints", plan.keep, world)
            sharding.shard(self.var, world, self.teacher.geometry.blocks if self.teacher else 0, self.dtype)
        self.objective = DistillObjective(self.var, self.teacher, recipe.weights)
        self.parallel = self.objective if self.sharded else world.parallel(self.objective)
        self.modules: dict[str, nn.Module] = {"var": as_module(self.var)}
        if self.teacher and self.teacher.saved:
            self.modules["teacher"] = self.teacher
        trained = (name for name, module in self.modules.items() if any(p.requires_grad for p in module.parameters()))
        self.optimizers = {name: adamw(self.modules[name], recipe.teacher_lr) for name in trained}
        self.guarded = GuardedStep(world, self.scaler, *self.optimizers.values())

    def _validation_tokens(self, val: ImageSource) -> ValidationTokens:
        """Tokens of centre crops, the same on every process."""
        recipe = self.recipe
        picks = spread(range(len(val)), recipe.val_images)
        self.world.say(f"tokenizing {counted(len(picks), 'image')} for validation")
        tokens = tokenize_images(
            self.tokenizer,
            val,
            picks,
            self.tokenizer.trained_with.image_size,
            recipe.crop_scale,
            VALIDATION_BATCH,
            self.tokens_precision,
            quiet=not self.world.main,
        )
        return ValidationTokens(*tokens)

    # ------------------------------------------------------------------ one step

    def train_step(self, step: int, batches: Sequence[Any]) -> StepResult:
        steps, depth = self.plan.steps_at(step), self.recipe.depth
        lr = self.recipe.lr * lin0(step, steps, warmup_steps(steps), final_lr_factor(depth))
        decay = cosine_weight_decay(step, steps, end=final_weight_decay(depth))
        for optimizer in self.optimizers.values():
            set_lr_and_decay(optimizer, lr, decay)
            optimizer.zero_grad(set_to_none=True)
        total: Terms = {}
        for number, batch in enumerate(batches):
            with self._synchronized(number == len(batches) - 1):
                for name, term in self._backward(batch).items():
                    total[name] = total.get(name, 0) + term / len(batches)
        alias_mean_TC = total.pop("alias_mean_TC", None)
        norms = self._gradient_norms()
        bad, skipped = self.guarded.step([total["loss"]], list(norms.values()))
        if self.teacher and self.teacher.alias_embedding and alias_mean_TC is not None:
            self.teacher.alias_embedding.follow(self.world.sum(alias_mean_TC) / self.world.size, unless=skipped)
        if self.teacher:
            self.teacher.follow(self.var, step, skipped)
        return StepResult({"lr": lr, **self._logged(step, total), **norms}, bad)

    def _backward(self, batch: Any) -> Terms:
        """Forward and backward of one micro-batch; returns its detached terms."""
        label_B, idx_BL, alias_BT = self._tokens(batch)
        x_BLC = self.embed.structure(idx_BL)
        reads = self.teacher is not None and self.teacher.reads_aliases
        alias_K = self.embed.alias(shown_in_training(self.recipe.shown, alias_BT)) if reads else []
        with self.autocast():
            loss, terms = self.parallel(label_B, x_BLC, idx_BL, alias_K)
        self.scaler.scale(loss / self.plan.accumulate).backward()
        if self.teacher and self.teacher.alias_embedding:
            terms["alias_mean_TC"] = self.teacher.alias_embedding.mean(alias_K)
        return {"loss": loss.detach()} | terms

    def _tokens(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (B,), structure tokens (B,L) and alias tokens (B,T) of a batch from the cache, or of images."""
        device = self.world.device
        label_B = batch.label.to(device, non_blocking=True)
        if isinstance(batch, Sample):
            return label_B, *tokenize(self.tokenizer, batch.image, self.tokens_precision)
        return (
            label_B,
            batch.structure.to(device, non_blocking=True).long(),
            batch.alias.to(device, non_blocking=True).long(),
        )

    def autocast(self) -> torch.autocast:
        """Mixed precision for both networks; losses use fp32 logits."""
        return autocast(self.dtype, self.world.device)

    def _synchronized(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are synchronized with the last micro-batch only; those of a sharded VAR with each, because FSDP2 would keep
        them whole on every process until then."""
        if self.sharded:
            return contextlib.nullcontext()
        return self.world.sync_gradients(self.parallel, last)

    def _gradient_norms(self) -> Terms:
        """Norms before clipping; the networks are clipped separately, so that they do not affect each other."""
        norms = {}
        for name, optimizer in self.optimizers.items():
            module = self.modules[name]
            if self.sharded and name == "teacher":
                sharding.average_gradients(module, self.world)
            self.scaler.unscale_(optimizer)
            norms["grad_norm" if name == "var" else f"{name}/grad_norm"] = gradient_norm(module, CLIP)
        return norms

    def _logged(self, step: int, total: Terms) -> Terms:
        """Scalars of a step; every `log_every` steps also VAR's own report and the terms of each scale and block."""
        values = {name: term for name, term in total.items() if term.ndim == 0}
        if step == 0 or (step + 1) % self.recipe.log_every == 0:
            values |= var_report(total, self.var.patch_nums)
            vectors = {name: term for name, term in total.items() if term.ndim == 1 and not name.endswith("student_S")}
            for name, term in vectors.items():
                kind = {"S": "scale", "M": "block"}[name[-1]]
                values |= {f"{name[:-2]}_{kind}{i}": value for i, value in enumerate(term.unbind(), start=1)}
        return values

    # ------------------------------------------------------------------ monitoring

    def observe(self, progress: Progress) -> None:
        """Validation on all processes, and samples."""
        with self.autocast():
            constant = CODE if self.recipe.shown == CONSTANT else None
            self.report = report = validate(
                self.objective, self.validation, self.embed, self.world, VALIDATION_BATCH, constant
            )
        if self.run:
            self.run.log(self.step, report.flat(), "val/")
        progress.say(f"step {self.step}: {summary(report)}")
        if self.recipe.samples and (self.run or self.sharded):
            with self.autocast():
                shown = numbers_in_use(self.data.images)
                images, labels = sample_classes(self.var, shown, self.recipe.samples, seed=self.plan.seed)
            if self.run:
                title = f"VAR-d{self.recipe.depth}, step {self.step} of {self.plan.steps}"
                draw_samples(self.run, images, labels, self.classes, title, self.step)

    def finish(self) -> None:
        report, recipe, steps = self.report, self.recipe, self.plan.steps
        assert self.run is not None and report is not None
        student = f"var_d{recipe.depth}.pth"
        print(f"\ntrained {steps} steps; the run is in {self.run.path}:")
        print(f"  {student:<14} the student, exactly the state dict of a vanilla VAR; vae.pth is its tokenizer")
        if "teacher" in self.modules:
            print("  teacher.pth    the teacher's own weights")
        if recipe.samples:
            print("  samples.png    drawn by upstream's sampler from the student alone")
        print(f"{self.run.metrics_line()}\n")
        measured = counted(report.images, "held-out image")
        if not recipe.held_out:
            measured = f"{counted(report.images, 'centre crop')} of the training images"
        print(f"cross-entropy on {measured}:")
        print("\n".join(report.lines(self.var.patch_nums)))
        if report.has_teacher and recipe.shown in (OWN, NO_ALIASES):
            print(report.verdict())
        elif report.has_teacher:  # a teacher that was shown something else need not gain from an image's own
            print(
                f"In training the teacher was shown {SHOWN_IN_TRAINING[recipe.shown]} ({recipe.shown}), as a control."
            )
        if one_of_each(self.data.images) and not self.sharded:
            print(f"\n{self._recognized().line()}")
        if recipe.demo:
            print(
                f"\nThis is a demo: {steps} steps on {len(self.data)} photographs. Its samples show that the parts "
                "work together, not what the method can do."
            )

    def _recognized(self) -> Recognized:
        """With a progress display: a large student takes a minute or two."""
        images, guidance = self.data.images, for_pictures(demo=self.recipe.demo)
        result = Recognized(0, 1, guidance.cfg)
        progress = Progress(0, -(-EACH * len(images) // BATCH), BATCH, unit="batch")
        with self.autocast():
            size = self.tokenizer.trained_with.image_size
            drawn = recognized(self.var, images, size, self.plan.seed, guidance)
            for number, result in enumerate(drawn, start=1):  # noqa: B007
                progress.update(number, {})
        progress.close()
        return result

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"scaler": self.scaler.state_dict()}
        for name, module in self.modules.items():
            optimizer = self.optimizers.get(name)  # an averaged teacher has none
            if self.sharded and name == "var":
                state["sharded"] = sharding.parts_of(module, self.optimizers[name])
                continue
            state[name] = module.state_dict()
            if optimizer is not None:
                state[f"{name}_optimizer"] = sharding.named_optimizer_state(module, optimizer)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["scaler"]:  # empty if the run was in another precision so far
            self.scaler.load_state_dict(state["scaler"])
        for name, module in self.modules.items():
            optimizer = self.optimizers.get(name)
            if name == "var" and "sharded" in state:
                sharding.load_parts(module, self.optimizers[name], state["sharded"], sharded=self.sharded)
                continue
            if name == "var" and self.sharded:
                sharding.load_whole_state(module, self.optimizers[name], state[name], state[f"{name}_optimizer"])
                continue
            module.load_state_dict(state[name], strict=True)
            if optimizer is not None:
                sharding.load_named_optimizer_state(module, optimizer, state[f"{name}_optimizer"])

    def weights(self) -> dict[str, dict[str, Any]]:
        """var_dD.pth, exactly upstream's state dict, and teacher.pth separately; of a sharded run copies, on rank 0."""
        states = {name: self._whole_weights(name, module) for name, module in self.modules.items()}
        files = {"var": f"var_d{self.recipe.depth}.pth", "teacher": "teacher.pth"}
        return {files[name]: state for name, state in states.items()}

    def _whole_weights(self, name: str, module: nn.Module) -> dict[str, Any]:
        if not self.sharded:
            return module.state_dict()
        if name == "var":
            return sharding.whole_weights(module)
        return copied(module.state_dict()) if self.world.main else {}


def summary(report: DistillReport) -> str:
    """'cross-entropy 4.211; with alias tokens 4.105 (better by 0.106 +- 0.010; another image's 0.002, constant 0.001)'."""
    text = f"cross-entropy {report.ce_mean['student']:.3f} on {counted(report.images, 'image')}"
    if not report.has_teacher:
        return text
    text = f"{text}; teacher {report.ce_mean['teacher']:.3f}, better by {report.gap():.4f} +- {report.gap_error:.4f}"
    if not report.has_controls:
        return text
    return f"{text} (with another image's alias tokens {report.gap('other'):.4f}, with constant ones {report.gap('constant'):.4f})"
