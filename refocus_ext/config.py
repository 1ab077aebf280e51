"""Options and presets of the commands. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses
from typing import Any

from refocus_ext.options import int_list, non_negative, option, positive

BLURS = ("disk", "gaussian", "sinc", "none")
VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclasses.dataclass(frozen=True)
class TokenizerOptions:
    """Stage 1: the structure tokenizer with its focus pyramid."""

    preset: str = option(
        "", "where all other defaults come from; demo without --data, paper with it",
        choices=("demo", "vanilla", "paper"), group="what to train on",
    )  # fmt: skip
    data: str = option(
        "", "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it the demo photographs",
        metavar="DIR", group="what to train on",
    )  # fmt: skip
    small_images: str = option(
        "auto", "images whose shorter side is below the crop: refuse to start, or upsample as VAR does; auto refuses "
        "up to 5000 images and upsamples beyond (ImageNet has such images)",
        choices=("auto", "refuse", "upsample"), group="what to train on",
    )  # fmt: skip
    crop_scale: float = option(
        None, "the shorter side is resized to this many crops before the random crop",
        kind=positive(float), group="what to train on",
    )  # fmt: skip
    hflip: bool = option(False, "random horizontal flips", group="what to train on")

    image_size: int = option(
        None, "crop, a multiple of 16", unit="pixels", kind=positive(int), group="geometry (VQVAE)"
    )
    patch_nums: tuple[int, ...] = option(
        None, "side of each token map, coarse to fine; the last is image size / 16",
        unit="latent cells", kind=int_list, group="geometry (VQVAE)",
    )  # fmt: skip
    codebook_size: int = option(None, "V, entries of the codebook", kind=positive(int), group="geometry (VQVAE)")
    latent_channels: int = option(None, "Cvae, width of a code vector", kind=positive(int), group="geometry (VQVAE)")
    ch: int = option(
        None, "base width of encoder and decoder, a multiple of 32", kind=positive(int), group="geometry (VQVAE)"
    )

    blur: str = option("disk", "defocus PSF; none is plain VAR", choices=BLURS, group="focus pyramid")
    focus_states: int = option(None, "K, number of focus states", kind=positive(int), group="focus pyramid")
    rho_max: float = option(
        None, "radius of the widest PSF", unit="pixels", kind=non_negative(float), group="focus pyramid"
    )
    noise_min: float = option(
        1e-3, "beta_1, noise on the most blurred view while training", unit="images are in [-1,1]",
        kind=non_negative(float), group="focus pyramid",
    )  # fmt: skip
    noise_max: float = option(
        1e-2, "beta_K, noise on the sharp view while training", unit="images are in [-1,1]",
        kind=non_negative(float), group="focus pyramid",
    )  # fmt: skip

    l1: float = option(None, "weight of the L1 pixel loss", kind=non_negative(float), group="losses")
    l2: float = option(1.0, "weight of the L2 pixel loss", kind=non_negative(float), group="losses")
    commitment: float = option(
        0.25, "beta of the VQ loss: commitment against codebook", kind=non_negative(float), group="losses"
    )
    prefix: float = option(
        1.0, "weight of a random state's prefix against F_k", kind=non_negative(float), group="losses"
    )
    anchor: float = option(
        1.0, "weight of a random state's unquantized D(T_k) against F_k", kind=non_negative(float), group="losses"
    )

    steps: int = option(None, "optimizer steps in all", kind=positive(int), group="optimization")
    warm_autoencoder: int = option(
        None, "first steps without quantization, before the codebook is initialised from data",
        kind=non_negative(int), group="optimization",
    )  # fmt: skip
    batch_size: int = option(None, "global batch", unit="images", kind=positive(int), group="optimization")
    lr: float = option(None, "peak learning rate", kind=positive(float), group="optimization")
    lr_end: float = option(
        None, "final learning rate as a share of the peak", kind=non_negative(float), group="optimization"
    )
    warmup: int = option(None, "steps of linear learning-rate warm-up", kind=non_negative(int), group="optimization")
    weight_decay: float = option(None, "AdamW weight decay", kind=non_negative(float), group="optimization")
    clip: float = option(1.0, "gradient-norm clip, 0 switches it off", kind=non_negative(float), group="optimization")
    revive: int = option(
        None, "steps between revivals of dead codes, 0 never", kind=non_negative(int), group="optimization"
    )  # fmt: skip
    seed: int = option(0, "seed of weights, data order, crops and noise", kind=int, group="optimization")

    out: str = option("runs/tokenizer", "run folder", metavar="DIR", group="run", identity=False)
    resume: str = option(
        "auto", "auto continues the run in --out, never starts afresh (the old folder is moved aside), or a checkpoint file",
        metavar="auto|never|PATH", group="run", identity=False,
    )  # fmt: skip
    device: str = option("auto", "cpu, cuda or cuda:N; auto takes CUDA where there is one", group="run", identity=False)
    workers: int = option(None, "loader processes", kind=non_negative(int), group="run", identity=False)
    save_every: int = option(None, "steps between checkpoints", kind=positive(int), group="run", identity=False)
    picture_every: int = option(
        None, "steps between pictures and validations", kind=positive(int), group="run", identity=False
    )
    dry_run: bool = option(False, "print the plan and leave", group="run", identity=False)


_PAPER: dict[str, Any] = dict(
    crop_scale=1.125, image_size=256, patch_nums=VAR_PATCH_NUMS, codebook_size=8192, latent_channels=32, ch=160,
    focus_states=4, rho_max=12.0, l1=0.2, steps=100_000, warm_autoencoder=0, batch_size=256, lr=1e-4, lr_end=0.01,
    warmup=1000, weight_decay=0.05, revive=1000, workers=8, save_every=1000, picture_every=2000,
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        crop_scale=1.125, image_size=64, patch_nums=(1, 2, 3, 4), codebook_size=512, latent_channels=32, ch=32,
        focus_states=3, rho_max=6.0, l1=1.0, steps=800, warm_autoencoder=300, batch_size=8, lr=6e-4, lr_end=0.05,
        warmup=20, weight_decay=0.0, revive=25, workers=0, save_every=100, picture_every=50,
    ),
    "vanilla": _PAPER | dict(codebook_size=4096),
    "paper": _PAPER,
}  # fmt: skip


def choose_preset(typed: dict[str, Any]) -> str:
    """demo without --data, paper with it (DESIGN 4)."""
    return "paper" if typed.get("data") else "demo"


def identity(options: Any) -> dict[str, Any]:
    """The options that make two runs the same run, as JSON-able values."""
    fields = [field for field in dataclasses.fields(options) if field.metadata["identity"]]
    values = {field.name: getattr(options, field.name) for field in fields}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
