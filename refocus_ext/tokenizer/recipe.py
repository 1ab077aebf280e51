"""How stage 1 trains: losses, rates and schedules, as plain values. `command.py` makes them from the options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StructureWeights:
    """Weights of the structure tokenizer's terms; `commitment` is beta of the VQ loss, `consistency` of `latent_consistency`.

    With `prefix_trains` "decoder" the prefix's gradient ends at the decoder: it learns unfinished sums, and tokens do not change
    for their sake.
    """

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    prefix: float = 0.0
    prefix_trains: str = "decoder"
    anchor: float = 1.0
    consistency: float = 0.0


@dataclass(frozen=True)
class CriticRecipe:
    """The adversarial loss.

    Args:
        weight: of the adversarial loss; 0 trains no discriminator.
        start: share of all steps after which it begins.
        warmup: steps over which it then grows to full weight.
        floor: least adaptive weight.
        lecam: weight of LeCAM on the discriminator.
        augment: DiffAug on its images.
        bcr: weight of balanced consistency regularization on the discriminator.
    """

    weight: float = 0.0
    start: float = 0.2
    warmup: int = 1000
    floor: float = 0.1
    lecam: float = 0.0
    augment: bool = False
    bcr: float = 0.0


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a stage-1 run trains its networks.

    Args:
        lr, alias_lr: peak learning rates of the two tokenizers.
        lr_end: final rate as a share of the peak.
        warmup: steps of linear warm-up.
        warm_autoencoder: first steps without quantization.
        betas, weight_decay: of AdamW; only matrices and kernels decay, see `decay_groups`.
        clip: of gradient norms; 0 clips nothing.
        ema: decay of the averaged weights; 0 averages nothing.
        revive: steps between revivals of dead codes; 0: never.
        lpips: weight of LPIPS on the sharp reconstruction.
        codebook_from_data: False if loaded weights include a codebook.
        codebook_images: training crops on which the codebook is initialized.
        precision: "auto", "fp32", "bf16" or "fp16".
        channels_last: "auto", "on" or "off".
        compile: torch.compile of encoder and decoder.
    """

    lr: float
    alias_lr: float
    lr_end: float
    warmup: int
    warm_autoencoder: int
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    ema: float
    revive: int
    lpips: float
    structure: StructureWeights
    critic: CriticRecipe
    codebook_from_data: bool = True
    codebook_images: int = 64
    precision: str = "auto"
    channels_last: str = "auto"
    compile: bool = False
