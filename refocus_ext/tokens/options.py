"""Options of `tokens`. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses

from refocus_ext.options import shared as common
from refocus_ext.options.parser import non_negative, option, positive

TOKENS_DESCRIPTION = """
Writes the structure and alias tokens of the training images once, so that distill need not run the encoders again:
fixed random crops, mirrored too with --hflip, two bytes a token. Typed again, the same command continues an
interrupted cache, or checks a finished one and remakes what is damaged.
"""


@dataclasses.dataclass(frozen=True)
class TokensOptions:
    """Which images are tokenized, by which tokenizer, in how many views."""

    # fmt: off
    tokenizer: str = option("runs/tokenizer", "run folder of a finished tokenizer", metavar="RUN", group="what to tokenize")
    data: str = option(
        "", "ImageFolder whose train/CLASS/*.JPEG are tokenized; without it the data of the tokenizer's run", metavar="DIR",
        group="what to tokenize",
    )
    small_images: str = option(
        "", "images whose shorter side is below the crop: refuse to start, or upsample as VAR does; without it as the "
        "tokenizer's run", choices=("auto", "refuse", "upsample"), group="what to tokenize",
    )

    crops: int = option(4, "random crops of an image, which training shows in turn", kind=positive(int), group="views of an image")
    hflip: bool = option(False, "each crop mirrored as well: twice as many views", group="views of an image")
    crop_scale: float = common.crop_scale("views of an image")
    seed: int = option(0, "seed of the crops", kind=int, group="views of an image")

    precision: str = option(
        "auto", "arithmetic of the encoders (the codebook search stays fp32); auto is tf32 on CUDA, as VAR encodes, fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"), group="speed",
    )
    batch_size: int = option(16, "views encoded at once on each process", kind=positive(int), group="speed")
    workers: int = option(None, "loader processes; without it as many as the tokenizer's run had", kind=non_negative(int), group="speed")
    device: str = common.device("speed")

    out: str = option("", "folder of the cache; without it `tokens` inside the tokenizer's run folder", metavar="DIR", group="run")
    dry_run: bool = option(False, "print what the cache will hold and how large it will be, and leave", group="run")
    # fmt: on
