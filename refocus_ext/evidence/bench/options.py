"""Options of `bench`. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses

from refocus_ext.options import shared as common
from refocus_ext.options.parser import int_list, non_negative, option, positive
from refocus_ext.options.shared import VAR_PATCH_NUMS

BENCH_DESCRIPTION = """
Times the focus pyramid and tokenization, a step of distillation and sampling beside upstream's own, in one process,
and prints the ratios. At its defaults, those of the paper and d16, it takes some ten minutes on two CPU cores.
"""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What is measured, at the geometry of preset paper unless told otherwise."""

    # fmt: off
    image_size: int = option(256, "a multiple of 16", unit="pixels", kind=positive(int), group="geometry")
    patch_nums: tuple[int, ...] = option(VAR_PATCH_NUMS, "side of each token map", unit="latent cells", kind=int_list, group="geometry")
    codebook_size: int = option(8192, "V, entries of the codebook", kind=positive(int), group="geometry")
    ch: int = option(160, "base width of the encoder, a multiple of 32", kind=positive(int), group="geometry")
    focus_states: int = option(4, "K, number of focus states", kind=positive(int), group="geometry")
    rho_max: float = option(12.0, "radius of the widest PSF", unit="pixels", kind=non_negative(float), group="geometry")
    depth: int = option(16, "D, blocks of the VAR whose training step is measured", kind=positive(int), group="geometry")
    section: str = option(
        "all", "tokenizer: the pyramid beside the encoder; distill: a training step beside upstream's; sampling: the "
        "sampler beside upstream's; all of them", choices=("all", "tokenizer", "distill", "sampling"), group="measurement",
    )
    batch_size: int = option(1, "batch", unit="images", kind=positive(int), group="measurement")
    repeats: int = option(3, "timed rounds, after one that is not", kind=positive(int), group="measurement")
    device: str = common.device("measurement")
    json: str = common.json_file("measurement")
    # fmt: on
