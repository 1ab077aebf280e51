"""Options of `tokenizer`. Imports no torch, so that help is instant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from refocus_ext.optics.names import BLURS, VIEWS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import at_least, int_list, non_negative, positive, share
from refocus_ext.options.presets import Stage, default_tokenizer_run

STRIDE = 16  # pixels per latent cell

DATA = Heading("what to train on")
VQVAE = Heading("structure tokenizer (VQVAE)")
FOCUS = Heading("focus pyramid")
ALIAS = Heading("alias tokenizer")
LOSS = Heading("losses")
TRAIN = Heading("optimization")
SPEED = Heading("speed")
RUN = Heading("run")


def most_states(image_size: int) -> int:
    """The largest number of focus states whose most blurred view still has a latent cell."""
    return (image_size // STRIDE).bit_length()


class TokenizerOptions(Options):
    """
    Trains the tokenizer of stage 1: VAR's VQVAE, whose coarse token maps follow defocused views of the image
    instead of downsampled ones. Without --data it trains a small one on the photographs inside scikit-image,
    in minutes on two CPU cores. Run the same command again to resume an interrupted run.
    """

    stage = "tokenizer"

    preset: str = shared.preset(DATA, "where all other defaults come from; demo without --data, paper with it")
    data: str = DATA(
        "",
        "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or (with --val-share) CLASS/*.JPEG, or one folder of "
        "images without classes; or letters, letters-fine, words, long-words, which are drawn (docs/letters.md); without it the "
        "demo photographs",
        metavar="DIR",
    )
    val_share: float = DATA(
        0.0,
        "where the data has no val/: share of the images, chosen by their names, that is held out for validation; later "
        "commands leave out the same ones",
        share,
        added=True,
    )
    small_images: str = shared.small_images(DATA)
    crop_scale: float = shared.crop_scale(DATA)
    hflip: bool = DATA(False, "random horizontal flips")
    init: str = DATA(
        "",
        "VQVAE weights to start from, as upstream publishes them (vae_ch160v4096z32.pth fits preset vanilla); their "
        "codebook is kept and used from the first step",
        metavar="FILE",
    )
    only: str = DATA(
        "",
        "alias: train the alias tokenizer alone; the VQVAE of --init is frozen, gives the geometry and is written unchanged; the "
        "image size follows --patch-nums, and focus states of the preset that do not fit it are left out",
        choices=("alias",),
    )

    image_size: int = VQVAE(None, "crop, a multiple of 16", positive(int), unit="pixels")
    patch_nums: tuple[int, ...] = VQVAE(
        None, "side of each token map, coarse to fine; the last is image size / 16", int_list, unit="latent cells"
    )
    codebook_size: int = VQVAE(None, "V, entries of the codebook", at_least(2))
    latent_channels: int = VQVAE(32, "Cvae, width of a code vector", positive(int))
    ch: int = VQVAE(None, "base width of encoder and decoder, a multiple of 32", positive(int))
    dropout: float = VQVAE(0.0, "share of activations dropped in its residual blocks while training", share, added=True)

    blur: str = FOCUS(
        "disk",
        "defocus PSF; none is plain VAR, sharp is none with the noise and terms of focus states (an ablation)",
        choices=BLURS,
    )
    focus_states: int = FOCUS(None, "K, number of focus states", positive(int))
    rho_max: float = FOCUS(None, "radius of the widest PSF", non_negative(float), unit="pixels")
    views: str = FOCUS(
        "full",
        "size at which F_k is encoded, and its prefix and anchor decoded: the image's; decimated by s_k, the letter of r_k = "
        "Q_L(L_k); or half where s_k >= 4",
        choices=VIEWS,
        added=True,
    )
    noise_min: float = FOCUS(
        1e-3, "beta_1, noise on the most blurred view while training", non_negative(float), unit="images are in [-1,1]"
    )
    noise_max: float = FOCUS(
        1e-2, "beta_K, noise on the sharp view while training", non_negative(float), unit="images are in [-1,1]"
    )

    alias: str = ALIAS("on", "whether to train the alias tokenizer too", choices=("on", "off"))
    alias_codebook: str = ALIAS(
        "own",
        "a codebook of its own; or, as ablations, the structure tokenizer's, or --alias-codes evenly spread entries of it",
        choices=("own", "shared", "shared-part"),
    )
    alias_stride: int = ALIAS(8, "pixels of a view per alias token", choices=(4, 8, 16))
    alias_codes: int = ALIAS(512, "entries of its own codebook, or of the part of a shared one", at_least(2))
    alias_width: int = ALIAS(64, "base width of its encoder and decoder, a multiple of 8", positive(int))
    alias_lr: float = ALIAS(None, "its peak learning rate", positive(float))

    l1: float = LOSS(None, "weight of the L1 pixel loss", non_negative(float))
    l2: float = LOSS(1.0, "weight of the L2 pixel loss", non_negative(float))
    lpips: float = LOSS(None, "weight of LPIPS on the sharp reconstruction", non_negative(float))
    lpips_weights: str = LOSS(
        "",
        "VGG16 for LPIPS, torchvision's vgg16-397923af.pth; without this option it is taken from torch's hub folder",
        metavar="FILE",
        identity=False,
    )
    gan: float = LOSS(None, "weight of the adversarial loss on the sharp reconstruction", non_negative(float))
    disc: str = LOSS(
        "patch",
        "discriminator: PatchGAN on pixels, or heads on frozen features of DINO's ViT-S/16",
        choices=("patch", "dino"),
        added=True,
    )
    disc_weights: str = LOSS(
        "",
        "ViT of --disc dino, facebook's dino_deitsmall16_pretrain.pth; without this option it is taken from torch's hub folder",
        metavar="FILE",
        identity=False,
        added=True,
    )
    disc_augment: str = LOSS(
        "off",
        "DiffAug on all images that the discriminator sees: colour, translation, cutout",
        choices=("on", "off"),
        added=True,
    )
    bcr: float = LOSS(
        0.0,
        "weight of balanced consistency regularization: the discriminator's logits of an image changed by DiffAug shall not differ",
        non_negative(float),
        added=True,
    )
    gan_start: float = LOSS(0.2, "share of the steps after which the adversarial loss begins", non_negative(float))
    gan_warmup: int = LOSS(1000, "steps over which it then grows to full weight", positive(int))
    gan_floor: float = LOSS(
        None, "least adaptive weight (ratio of gradient norms at the decoder's last layer)", non_negative(float)
    )
    lecam: float = LOSS(0.0, "weight of LeCAM on the discriminator", non_negative(float))
    commitment: float = LOSS(0.25, "beta of the VQ loss: commitment against codebook", non_negative(float))
    prefix: float = LOSS(
        0.0, "weight of a random state's prefix against F_k, 0: no such term", non_negative(float), earlier=1.0
    )
    prefix_trains: str = LOSS(
        "decoder",
        "what that term trains: the decoder alone, or all networks, so that coarse tokens change for its sake",
        choices=("decoder", "all"),
        earlier="all",
    )
    anchor: float = LOSS(1.0, "weight of a random state's unquantized D(T_k) against F_k", non_negative(float))

    consistency: float = LOSS(
        0.0,
        "weight of the disagreement of neighbouring states' latents, with smaller --views",
        non_negative(float),
        added=True,
    )

    steps: int = TRAIN(None, "optimizer steps in all", positive(int))
    warm_autoencoder: int = TRAIN(
        None,
        "first steps without quantization, before the codebook is initialised from data",
        non_negative(int),
        follows="steps",
    )
    codebook_images: int = TRAIN(
        None, "training crops from which the codebook is initialised, by k-means", positive(int), unit="images"
    )
    batch_size: int = shared.batch_size(TRAIN)
    accumulate: int = shared.accumulate(TRAIN)
    lr: float = TRAIN(None, "peak learning rate", positive(float))
    lr_end: float = TRAIN(None, "final learning rate as a share of the peak", non_negative(float))
    warmup: int = TRAIN(None, "steps of linear learning-rate warm-up", non_negative(int), follows="steps")
    beta1: float = TRAIN(None, "AdamW's first beta", non_negative(float))
    beta2: float = TRAIN(None, "AdamW's second beta", positive(float))
    weight_decay: float = TRAIN(
        None, "AdamW weight decay of matrices and kernels; codebooks, norms and biases have none", non_negative(float)
    )
    clip: float = TRAIN(None, "gradient-norm clip, 0 switches it off", non_negative(float))
    ema: float = TRAIN(
        None, "decay of the averaged weights that are validated and written; 0 averages nothing", non_negative(float)
    )
    revive: int = TRAIN(None, "steps between revivals of dead codes, 0: never", non_negative(int))
    seed: int = TRAIN(0, "seed of weights, data order, crops and noise")
    precision: str = SPEED(
        "auto",
        "autocast of the networks (the codebook search stays fp32); auto is bf16 on CUDA (fp16 before compute capability 8), "
        "fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    grad_checkpoint: bool = SPEED(
        False,
        "recompute the passes of encoder and decoder in the backward pass: less memory, a third more time",
        told=True,
    )
    compile: bool = SPEED(False, "torch.compile encoder and decoder", told=True)
    channels_last: str = SPEED(
        "auto", "memory layout of the networks; auto is on for CUDA", choices=("auto", "on", "off"), told=True
    )
    workers: int = shared.workers(SPEED)
    device: str = shared.device(SPEED)

    out: str = RUN("runs/tokenizer", "run folder", metavar="DIR", identity=False)
    resume: str = shared.resume(RUN)
    extend: bool = shared.extend(RUN)
    log: str = shared.log(RUN)
    save_every: int = RUN(None, "steps between checkpoints", positive(int), identity=False)
    picture_every: int = RUN(None, "steps between pictures and validations", positive(int), identity=False)
    val_images: int = RUN(
        256, "validate on at most this many images, evenly spread over the data", positive(int), identity=False
    )
    dry_run: bool = shared.dry_run(RUN)
    gpu_memory: float = shared.gpu_memory(RUN)

    @classmethod
    def begun(cls, typed: Mapping[str, object], stage: Stage) -> dict[str, object]:
        """Values of the run in --out: options whose default has changed since it began, and those that follow the steps where it
        is extended, or where they are the preset's own: until they followed the steps, every run had those."""
        if typed.get("resume") == "never":
            return {}
        try:
            file = Path(str(typed.get("out") or default_tokenizer_run(str(typed.get("data") or "")))) / "config.json"
            config = json.loads(file.read_text())
            theirs = config["options"]
            changed = cls.earlier()
            kept = (
                {} if changed.keys() <= theirs.keys() else {name: theirs.get(name, changed[name]) for name in changed}
            )
            followers = [name for name, option in cls.fields().items() if option.follows]
            same = theirs["steps"] == typed.get("steps", stage["steps"])
            if typed.get("extend") or (same and len(config.get("schedule", ())) > 1):
                return kept | {name: theirs[name] for name in followers}
            return kept | {name: stage[name] for name in followers if same and theirs[name] == stage[name]}
        except (OSError, ValueError, KeyError, TypeError):  # no run of this command
            return {}

    @classmethod
    def implied(cls, typed: Mapping[str, object], name: str, stage: Stage) -> dict[str, object]:
        """With --only alias the geometry is that of the file of weights, not the preset's: the image size follows the token maps
        that are typed, and there are no more focus states than it allows. Drawn pictures have a run folder of their own."""
        out: dict[str, object] = {"out": default_tokenizer_run(str(typed.get("data") or ""))}
        if not typed.get("only"):
            return out
        values = {key: typed.get(key, stage[key]) for key in ("image_size", "patch_nums", "focus_states")}
        size, maps, states = values["image_size"], values["patch_nums"], values["focus_states"]
        assert isinstance(size, int) and isinstance(maps, tuple) and isinstance(states, int)
        if "patch_nums" in typed and "image_size" not in typed:
            size = STRIDE * maps[-1]
        return out | {"image_size": size, "focus_states": max(1, min(states, most_states(size)))}

    def idle(self) -> frozenset[str]:
        """The options without effect, given the others."""
        alias = ("alias_codebook", "alias_stride", "alias_codes", "alias_width", "alias_lr")
        names: tuple[str, ...] = (
            alias if self.alias == "off" else ("alias_codes",) if self.alias_codebook == "shared" else ()
        )
        names += (
            ("gan_start", "gan_warmup", "gan_floor", "lecam", "disc", "disc_augment", "bcr") if not self.gan else ()
        )
        names += ("prefix_trains",) if self.blur == "none" or not self.prefix else ()
        names += ("codebook_images",) if self.init else ()
        names += ("dropout",) if self.only else ()
        return frozenset(names)

    def several_processes(self) -> bool:
        return True
