"""Stage 1: trains the structure tokenizer on focus targets. `bash run.sh tokenizer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patches import Focus, Upstream, load_upstream
from patches.vae_init import init_vae_weights
from refocus_ext.checkpoint import load_checkpoint
from refocus_ext.codebook import CodeRevival, initialise_codebook
from refocus_ext.config import TokenizerOptions, identity
from refocus_ext.data import (
    Crops,
    ImageList,
    StepBatches,
    check_images,
    demo_photographs,
    derived_seed,
    image_folder,
    spread,
)
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.files import save_json, save_tensors
from refocus_ext.loop import Interruption, Progress, gradient_norm, pick_device, set_lr, warmup_cosine
from refocus_ext.picture import as_array, grid, save_png
from refocus_ext.pyramid import FocusPyramid
from refocus_ext.run_folder import RunFolder
from refocus_ext.structure import PrefixReport, StructureObjective, StructureWeights, prefixes, psnr, validate

PICTURE_ROWS = 8
VALIDATION_IMAGES = 256


def main(options: TokenizerOptions) -> int:
    """Runs the command; returns its exit code."""
    upstream = load_upstream()
    print(upstream.describe())
    print(_why_preset(options))
    pyramid = make_pyramid(options)
    train_images, val_images = find_images(options)
    check_plan(options, pyramid, train_images)
    for line in (check_images(train_images, options.image_size, options.small_images), *pyramid.rayleigh_warnings()):
        if line:
            print(f"note: {line}")
    device = pick_device(options.device)
    torch.manual_seed(derived_seed(options.seed, 2))
    vae = build_vae(upstream, options, pyramid, device)
    print_plan(options, pyramid, vae, train_images, device)
    if options.dry_run:
        return 0
    run = open_run(options, pyramid, upstream, train_images)
    run.require_space(3 * 3 * state_bytes(vae))
    trainer = TokenizerTrainer(options, vae, train_images, val_images, device, run)
    with Interruption() as interruption:
        return trainer.fit(interruption)


# ------------------------------------------------------------------------------------------------ before the work


def _why_preset(options: TokenizerOptions) -> str:
    if options.preset == "demo" and not options.data:
        return "preset demo: a small model on the photographs inside scikit-image, because no --data was given"
    return f"preset {options.preset}" + (f": training on {options.data}" if options.data else "")


def make_pyramid(options: TokenizerOptions) -> FocusPyramid:
    """The focus pyramid of the options; its complaints are usage errors."""
    try:
        return FocusPyramid(
            image_size=options.image_size,
            states=options.focus_states,
            rho_max=options.rho_max,
            blur=options.blur,
            noise_min=options.noise_min,
            noise_max=options.noise_max,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_images(options: TokenizerOptions) -> tuple[ImageList, ImageList]:
    """Training and validation images; the demo validates on centre crops of its own photographs."""
    if not options.data:
        photographs = demo_photographs()
        return photographs, photographs
    train, val = image_folder(options.data, "train"), image_folder(options.data, "val")
    if missing := sorted(set(val.classes) - set(train.classes)):
        raise UsageError(
            f"--data {options.data}: val/ has the class {missing[0]}, which train/ has not; the two must agree."
        )
    return train, val


def check_plan(options: TokenizerOptions, pyramid: FocusPyramid, images: ImageList) -> None:
    """Raises UsageError where the options do not fit each other or the data."""
    if list(options.patch_nums) != sorted(set(options.patch_nums)) or options.patch_nums[-1] != pyramid.latent_size:
        raise UsageError(
            f"--patch-nums {','.join(map(str, options.patch_nums))} must rise and end at image size / 16 = {pyramid.latent_size}."
        )
    if len(options.patch_nums) < 2:
        raise UsageError("--patch-nums needs at least two token maps.")
    if options.ch % 32:
        raise UsageError(f"--ch {options.ch} is no multiple of 32, the groups of the VQVAE's normalization.")
    if options.batch_size > len(images):
        raise UsageError(
            f"--batch-size {options.batch_size} is larger than the data set of {len(images)} images; choose at most {len(images)}."
        )
    if options.warm_autoencoder >= options.steps:
        raise UsageError(
            f"--warm-autoencoder {options.warm_autoencoder} leaves no step of --steps {options.steps} with quantization; lower it."
        )
    if options.resume not in ("auto", "never") and not Path(options.resume).is_file():
        raise UsageError(f"--resume {options.resume} is neither auto nor never nor a checkpoint file.")


def build_vae(upstream: Upstream, options: TokenizerOptions, pyramid: FocusPyramid, device: torch.device) -> Any:
    """A trainable VQVAE of the options' geometry, patched with the focus pyramid."""
    vae = upstream.build_vae(
        vocab_size=options.codebook_size,
        z_channels=options.latent_channels,
        ch=options.ch,
        patch_nums=options.patch_nums,
        beta=options.commitment,
        test_mode=False,
        device=device,
    )
    init_vae_weights(vae)
    Focus(pyramid).apply(vae)
    return vae.train()


def state_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def print_plan(
    options: TokenizerOptions, pyramid: FocusPyramid, vae: Any, images: ImageList, device: torch.device
) -> None:
    """What is about to happen, in five lines."""
    parameters = sum(p.numel() for p in vae.parameters())
    states = ", ".join(
        f"{k + 1}: {radius:g} px -> maps {_maps(options, pyramid, k)}" for k, radius in enumerate(pyramid.radii)
    )
    print(f"images: {len(images)} in {len(images.classes)} classes, crops of {options.image_size} px")
    print(
        f"tokenizer: {parameters / 1e6:.1f}M parameters, {options.codebook_size} codes of {options.latent_channels}, "
        f"{sum(pn * pn for pn in options.patch_nums)} tokens an image"
    )
    print(f"focus states ({pyramid.blur}): {states}")
    print(
        f"training: {options.steps} steps of {options.batch_size} images ({options.warm_autoencoder} of them without "
        f"quantization), peak lr {options.lr:g}, on {device}"
    )


def _maps(options: TokenizerOptions, pyramid: FocusPyramid, state: int) -> str:
    own = [
        str(pn) for pn, k in zip(options.patch_nums, pyramid.states_of(options.patch_nums), strict=True) if k == state
    ]
    return ",".join(own) or "none"


def open_run(options: TokenizerOptions, pyramid: FocusPyramid, upstream: Upstream, images: ImageList) -> RunFolder:
    config = {
        "command": "tokenizer",
        "identity": identity(options),
        "options": dataclasses.asdict(options),
        "pyramid": pyramid.to_dict(),
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    run = RunFolder(Path(options.out), config, fresh=options.resume == "never")
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    save_json(run.path / "classes.json", list(images.classes))
    return run


# ------------------------------------------------------------------------------------------------ the work


class TokenizerTrainer:
    """Model, optimizer and data of one run, and its loop."""

    def __init__(
        self,
        options: TokenizerOptions,
        vae: Any,
        train: ImageList,
        val: ImageList,
        device: torch.device,
        run: RunFolder,
    ) -> None:
        self.options, self.vae, self.train_images, self.device, self.run = options, vae, train, device, run
        weights = StructureWeights(options.l1, options.l2, options.commitment, options.prefix, options.anchor)
        self.objective = StructureObjective(vae, weights)
        self.optimizer = torch.optim.AdamW(
            vae.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay
        )
        self.revival = CodeRevival(vae.quantize)
        self.data = Crops(train, options.image_size, scale=options.crop_scale, hflip=options.hflip, seed=options.seed)
        self.val_data = Crops(val, options.image_size, scale=options.crop_scale, random=False)
        self.step = 0  # steps done

    # ------------------------------------------------------------------ one step

    def train_step(self, step: int, x: Tensor) -> dict[str, float]:
        """The step with 0-based number `step`; all its randomness is derived from (seed, step)."""
        options = self.options
        torch.manual_seed(derived_seed(options.seed, 3, step))
        if step == options.warm_autoencoder:
            self._initialise_codebook()
        lr = options.lr * warmup_cosine(step, options.steps, options.warmup, options.lr_end)
        set_lr(self.optimizer, lr)
        state = int(torch.randint(options.focus_states, ()))
        out = self.objective(x, state, quantize=step >= options.warm_autoencoder)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        norm = gradient_norm(self.vae, options.clip)
        if not (torch.isfinite(out.loss) and norm < float("inf")):
            raise RunFailed(f"the loss or gradient of step {step + 1} is not finite; lower --lr (now {options.lr:g}).")
        self.optimizer.step()
        revived = self._revive(step, out.idx_S, out.residual_S)
        values = {"loss": float(out.loss.detach()), **{name: float(term) for name, term in out.terms.items()}}
        return values | {"lr": lr, "grad_norm": norm} | ({"revived": revived} if revived is not None else {})

    @torch.no_grad()
    def _initialise_codebook(self) -> None:
        """Fills the codebook from the focus targets of training crops (at least 2048 tokens of the finest map)."""
        count = max(64, 2048 // self.options.patch_nums[-1] ** 2)
        keys = StepBatches(len(self.data), count, start=0, stop=1, seed=derived_seed(self.options.seed, 4))
        self.vae.eval()
        targets: list[list[Tensor]] = []
        for chunk in _chunks(list(next(iter(keys))), self.options.batch_size):
            T = self.vae.encode_targets(torch.stack([self.data[key][0] for key in chunk]).to(self.device))
            targets.append([T] * self.options.focus_states if isinstance(T, Tensor) else T)
        self.vae.train()
        T_K = [torch.cat(parts) for parts in zip(*targets, strict=True)]
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, 5))
        initialise_codebook(self.vae.quantize, T_K, generator)

    def _revive(self, step: int, idx_S: list[Tensor], residual_S: list[Tensor]) -> int | None:
        if not idx_S or not self.options.revive:
            return None
        self.revival.count(idx_S)
        # none in the last fifth: a code revived there would not be trained
        if (step + 1) % self.options.revive or step + 1 > 0.8 * self.options.steps:
            return None
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, 6, step))
        return self.revival.revive(residual_S, self.optimizer, generator)

    # ------------------------------------------------------------------ the loop

    def fit(self, interruption: Interruption) -> int:
        """Trains from where the run stands to the last step; returns the exit code."""
        options = self.options
        self._resume()
        if self.step >= options.steps:
            print(f"{self.run.path} is already trained for {options.steps} steps; nothing to do.")
            return 0
        self.run.begin_metrics(self.step)
        progress = Progress(self.step, options.steps, options.batch_size)
        try:
            for x, _ in self._loader():
                values = self.train_step(self.step, x.to(self.device, non_blocking=True))
                self.step += 1
                self.run.log(self.step, values, "train/")
                progress.update(self.step, {name: values[name] for name in ("loss", "recon")})
                self._periodically(progress)
                if interruption.signal and self.step < options.steps:
                    self.save()
                    progress.say(f"saved step {self.step}; the same command continues from here")
                    return interruption.exit_code
        finally:
            progress.close()
            self.run.close()
        return 0

    def _loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        options = self.options
        batches = StepBatches(
            len(self.data), options.batch_size, start=self.step, stop=options.steps, seed=options.seed
        )
        return DataLoader(
            self.data,
            batch_sampler=batches,
            num_workers=options.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=False,
        )

    def _periodically(self, progress: Progress) -> None:
        options, last = self.options, self.step == self.options.steps
        report = None
        if self.step > options.warm_autoencoder and (last or self.step % options.picture_every == 0):
            report = validate(self.vae, list(self._val_batches(VALIDATION_IMAGES)))
            self.run.log(self.step, report.flat(), "val/")
            progress.say(f"step {self.step}: {summary(report, options.codebook_size)}")
        if last or self.step % options.picture_every == 0:
            self.draw()
        if last or self.step % options.save_every == 0:
            self.save()
        if last and report:
            self.finish(report)

    def _val_batches(self, limit: int) -> Iterable[Tensor]:
        indices = spread(range(len(self.val_data)), limit)
        for chunk in _chunks(indices, self.options.batch_size):
            yield torch.stack([self.val_data[index][0] for index in chunk]).to(self.device)

    # ------------------------------------------------------------------ results

    def draw(self) -> None:
        """picture.png: original | each focus state | its reconstruction from the prefix of its scales."""
        self.vae.eval()
        rows, captions, names = [], [], []
        indices = spread(range(len(self.val_data)), PICTURE_ROWS)
        pyramid = self.vae.focus_pyramid
        with torch.no_grad():
            for index in indices:
                image, label = self.val_data[index]
                x = image.unsqueeze(0).to(self.device)
                decoded = prefixes(self.vae, x) if self.step > self.options.warm_autoencoder else self._unquantized(x)
                row, caption = [x[0]], [""]
                for k, result in enumerate(decoded):
                    target = pyramid.focused(x, k)
                    row += [target[0], result[0]]
                    caption += ["", f"{float(psnr(result, target)):.1f} dB"]
                rows.append(row)
                captions.append(caption)
                names.append(self.val_data.images.classes[label])
        self.vae.train()
        picture = grid(rows, self._headers(), captions, names, f"step {self.step} of {self.options.steps}")
        save_png(self.run.path / "picture.png", picture)
        self.run.log_image(self.step, "picture", as_array(picture))

    def _unquantized(self, x: Tensor) -> list[Tensor]:
        views = self.vae.focus_pyramid.structure_views(x)
        return [self.vae.decode(self.vae.encode_view(view)) for view in views]

    def _headers(self) -> list[str]:
        pyramid = self.vae.focus_pyramid
        headers = ["original"]
        quantized = self.step > self.options.warm_autoencoder
        for k, scale in enumerate(pyramid.last_scale_of_state(self.options.patch_nums)):
            maps = self.options.patch_nums[: (scale if scale is not None else len(self.options.patch_nums) - 1) + 1]
            tokens = sum(pn * pn for pn in maps)
            blur = f"rho {pyramid.radii[k]:g} px" if pyramid.refocuses and pyramid.radii[k] else "sharp"
            headers += [
                f"F{k + 1}\n{blur}",
                f"from {tokens} token{'s' * (tokens > 1)}\nPSNR to F{k + 1}" if quantized else "unquantized\n",
            ]
        return headers

    def finish(self, report: PrefixReport) -> None:
        """Prints the closing table."""
        print(f"\ntrained {self.options.steps} steps; the run is in {self.run.path}:")
        print("  picture.png    original, focus states and their reconstructions")
        print("  vae.pth        the tokenizer as a plain upstream state dict")
        print("  metrics.jsonl  every step; `tensorboard --logdir` shows the same\n")
        print("focus state   prefix against F_k   prefix against x")
        for k, (focus, sharp) in enumerate(zip(report.psnr_focus_K, report.psnr_sharp_K, strict=True), start=1):
            print(f"{k:>11}   {focus:>13.2f} dB   {sharp:>13.2f} dB")

    # ------------------------------------------------------------------ saving and resuming

    def save(self) -> None:
        """A checkpoint to resume from, and the weights as upstream's plain state dict."""
        state = {
            "vae": self.vae.state_dict(),
            "record_hit": self.vae.quantize.record_hit,
            "optimizer": self.optimizer.state_dict(),
            "revival": self.revival.state_dict(),
        }
        self.run.checkpoints.save(self.step, state)
        try:
            save_tensors(self.run.path / "vae.pth", self.vae.state_dict())
        except (OSError, RuntimeError) as error:
            raise RunFailed(f"{self.run.path / 'vae.pth'} could not be written ({error}).") from error

    def _resume(self) -> None:
        given = self.options.resume not in ("auto", "never")
        state = load_checkpoint(Path(self.options.resume)) if given else self.run.checkpoints.load_latest()
        if state is None:
            return
        self.vae.load_state_dict(state["vae"], strict=True)
        self.vae.quantize.record_hit = state["record_hit"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.revival.load_state_dict(state["revival"])
        self.step = state["step"]
        print(f"resuming after step {self.step}")


def summary(report: PrefixReport, codes: int) -> str:
    """'prefixes against F_k 20.1 21.0 22.3 dB; codes in use per scale 12 60 300 of 512'."""
    focus = " ".join(f"{value:.1f}" for value in report.psnr_focus_K)
    usage = " ".join(f"{round(codes * value / 100)}" for value in report.usage_S)
    return f"prefixes against F_k {focus} dB; codes in use per scale {usage} of {codes}"


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
