"""Options and presets of the commands. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses
from typing import Any

from refocus_ext.optics.names import BLURS
from refocus_ext.options import shared as common
from refocus_ext.options.parser import int_list, non_negative, option, positive
from refocus_ext.options.shared import VAR_PATCH_NUMS

TOKENIZER_DESCRIPTION = """
Trains the tokenizer of stage 1: VAR's VQVAE, whose coarse token maps follow defocused views of the image
instead of downsampled ones. Without --data it trains a small one on the photographs inside scikit-image,
in minutes on two CPU cores. Typed again, the same command continues an interrupted run.
"""


@dataclasses.dataclass(frozen=True)
class TokenizerOptions:
    """Stage 1: the structure tokenizer with its focus pyramid, and the alias tokenizer beside it."""

    # fmt: off
    preset: str = option(
        "", "where all other defaults come from; demo without --data, paper with it",
        choices=("demo", "vanilla", "paper", "paper-512"), group="what to train on",
    )
    data: str = option(
        "", "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it the demo photographs",
        metavar="DIR", group="what to train on",
    )
    small_images: str = common.small_images("what to train on")
    crop_scale: float = common.crop_scale("what to train on")
    hflip: bool = option(False, "random horizontal flips", group="what to train on")
    init: str = option(
        "", "VQVAE weights to start from, as upstream publishes them (vae_ch160v4096z32.pth fits preset vanilla); their "
        "codebook is kept and used from the first step", metavar="FILE", group="what to train on",
    )

    image_size: int = option(None, "crop, a multiple of 16", unit="pixels", kind=positive(int), group="structure tokenizer (VQVAE)")
    patch_nums: tuple[int, ...] = option(
        None, "side of each token map, coarse to fine; the last is image size / 16",
        unit="latent cells", kind=int_list, group="structure tokenizer (VQVAE)",
    )
    codebook_size: int = option(None, "V, entries of the codebook", kind=positive(int), group="structure tokenizer (VQVAE)")
    latent_channels: int = option(32, "Cvae, width of a code vector", kind=positive(int), group="structure tokenizer (VQVAE)")
    ch: int = option(
        None, "base width of encoder and decoder, a multiple of 32", kind=positive(int), group="structure tokenizer (VQVAE)",
    )

    blur: str = option("disk", "defocus PSF; none is plain VAR", choices=BLURS, group="focus pyramid")
    focus_states: int = option(None, "K, number of focus states", kind=positive(int), group="focus pyramid")
    rho_max: float = option(None, "radius of the widest PSF", unit="pixels", kind=non_negative(float), group="focus pyramid")
    noise_min: float = option(
        1e-3, "beta_1, noise on the most blurred view while training", unit="images are in [-1,1]",
        kind=non_negative(float), group="focus pyramid",
    )
    noise_max: float = option(
        1e-2, "beta_K, noise on the sharp view while training", unit="images are in [-1,1]",
        kind=non_negative(float), group="focus pyramid",
    )

    alias: str = option("on", "train the alias tokenizer too, or not", choices=("on", "off"), group="alias tokenizer")
    alias_codebook: str = option(
        "own", "a codebook of its own, or the structure tokenizer's (an ablation)",
        choices=("own", "shared"), group="alias tokenizer",
    )
    alias_stride: int = option(8, "pixels of a view per alias token", choices=(4, 8, 16), kind=int, group="alias tokenizer")
    alias_codes: int = option(512, "entries of its own codebook", kind=positive(int), group="alias tokenizer")
    alias_width: int = option(64, "base width of its encoder and decoder, a multiple of 8", kind=positive(int), group="alias tokenizer")
    alias_lr: float = option(None, "its peak learning rate", kind=positive(float), group="alias tokenizer")

    l1: float = option(None, "weight of the L1 pixel loss", kind=non_negative(float), group="losses")
    l2: float = option(1.0, "weight of the L2 pixel loss", kind=non_negative(float), group="losses")
    lpips: float = option(None, "weight of LPIPS on the sharp reconstruction", kind=non_negative(float), group="losses")
    lpips_weights: str = option(
        "", "VGG16 for LPIPS, torchvision's vgg16-397923af.pth; empty looks in torch's hub folder", metavar="FILE", group="losses",
        identity=False,
    )
    gan: float = option(None, "weight of the adversarial loss on the sharp reconstruction", kind=non_negative(float), group="losses")
    gan_start: float = option(0.2, "share of the steps after which the adversarial loss begins", kind=non_negative(float), group="losses")
    gan_warmup: int = option(1000, "steps over which it then grows to full weight", kind=positive(int), group="losses")
    gan_floor: float = option(0.1, "least adaptive weight (ratio of gradient norms at the decoder's last layer)", kind=non_negative(float), group="losses")
    lecam: float = option(0.0, "weight of LeCAM on the discriminator", kind=non_negative(float), group="losses")
    commitment: float = option(0.25, "beta of the VQ loss: commitment against codebook", kind=non_negative(float), group="losses")
    prefix: float = option(1.0, "weight of a random state's prefix against F_k", kind=non_negative(float), group="losses")
    anchor: float = option(1.0, "weight of a random state's unquantized D(T_k) against F_k", kind=non_negative(float), group="losses")

    steps: int = option(None, "optimizer steps in all", kind=positive(int), group="optimization")
    warm_autoencoder: int = option(
        None, "first steps without quantization, before the codebook is initialised from data",
        kind=non_negative(int), group="optimization",
    )
    batch_size: int = common.batch_size("optimization")
    accumulate: int = common.accumulate("optimization")
    lr: float = option(None, "peak learning rate", kind=positive(float), group="optimization")
    lr_end: float = option(None, "final learning rate as a share of the peak", kind=non_negative(float), group="optimization")
    warmup: int = option(None, "steps of linear learning-rate warm-up", kind=non_negative(int), group="optimization")
    beta1: float = option(None, "AdamW's first beta", kind=non_negative(float), group="optimization")
    beta2: float = option(None, "AdamW's second beta", kind=positive(float), group="optimization")
    weight_decay: float = option(None, "AdamW weight decay", kind=non_negative(float), group="optimization")
    clip: float = option(1.0, "gradient-norm clip, 0 switches it off", kind=non_negative(float), group="optimization")
    ema: float = option(None, "decay of the averaged weights that are validated and written; 0 averages nothing", kind=non_negative(float), group="optimization")
    revive: int = option(None, "steps between revivals of dead codes, 0 never", kind=non_negative(int), group="optimization")
    seed: int = option(0, "seed of weights, data order, crops and noise", kind=int, group="optimization")
    precision: str = option(
        "auto", "autocast of the networks (the codebook search stays fp32); auto is bf16 on CUDA, fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"), group="speed",
    )
    compile: bool = option(False, "torch.compile encoder and decoder", group="speed", identity=False)
    channels_last: str = option("auto", "memory layout of the networks; auto is on for CUDA", choices=("auto", "on", "off"), group="speed")
    workers: int = common.workers("speed")
    device: str = common.device("speed")

    out: str = option("runs/tokenizer", "run folder", metavar="DIR", group="run", identity=False)
    resume: str = common.resume("run")
    save_every: int = option(None, "steps between checkpoints", kind=positive(int), group="run", identity=False)
    picture_every: int = option(None, "steps between pictures and validations", kind=positive(int), group="run", identity=False)
    val_images: int = option(256, "at most this many images are looked at in a validation, evenly spread", kind=positive(int), group="run", identity=False)
    dry_run: bool = common.dry_run("run")
    # fmt: on


_PAPER: dict[str, Any] = dict(
    image_size=256, patch_nums=VAR_PATCH_NUMS, codebook_size=8192, ch=160, focus_states=4, rho_max=12.0, l1=0.2, lpips=1.0,
    gan=0.4, steps=100_000, warm_autoencoder=1000, batch_size=256, lr=1e-4, alias_lr=1e-4, lr_end=0.01, warmup=1000, beta1=0.5, beta2=0.9,
    weight_decay=0.05, ema=0.9999, revive=1000, workers=8, save_every=1000, picture_every=2000,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        image_size=64, patch_nums=(1, 2, 3, 4), codebook_size=512, ch=32, focus_states=3, rho_max=6.0, l1=1.0, lpips=0.0,
        gan=0.0, steps=500, warm_autoencoder=200, batch_size=8, lr=6e-4, alias_lr=1e-3, lr_end=0.05, warmup=20, beta1=0.9, beta2=0.99,
        weight_decay=0.0, ema=0.0, revive=25, workers=0, save_every=100, picture_every=100,
    ),
    "vanilla": _PAPER | dict(codebook_size=4096),
    "paper": _PAPER,
    "paper-512": _PAPER | dict(image_size=512, patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
}  # fmt: skip


def choose_preset(typed: dict[str, Any]) -> str:
    """demo without --data, paper with it (DESIGN 4)."""
    return "paper" if typed.get("data") else "demo"
