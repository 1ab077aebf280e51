"""Options of `bench`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import int_list, non_negative, positive
from refocus_ext.options.presets import VAR_PATCH_NUMS

GEOMETRY = Heading("geometry")
MEASURE = Heading("measurement")
REPORT = Heading("report on a GPU")


class BenchOptions(Options):
    """
    Times the focus pyramid and tokenization, a step of distillation and sampling beside upstream's own, in one process;
    also loading images, and starting a command. Prints the ratios. At its defaults, those of the paper and d16, it takes
    some ten minutes on two CPU cores.
    """

    image_size: int = GEOMETRY(256, "a multiple of 16", positive(int), unit="pixels")
    patch_nums: tuple[int, ...] = GEOMETRY(VAR_PATCH_NUMS, "side of each token map", int_list, unit="latent cells")
    codebook_size: int = GEOMETRY(8192, "V, entries of the codebook", positive(int))
    ch: int = GEOMETRY(160, "base width of the encoder, a multiple of 32", positive(int))
    focus_states: int = GEOMETRY(4, "K, number of focus states", positive(int))
    rho_max: float = GEOMETRY(12.0, "radius of the widest PSF", non_negative(float), unit="pixels")
    depth: int = GEOMETRY(16, "D, blocks of the VAR whose training step is measured", positive(int))
    section: str = MEASURE(
        "all",
        "tokenizer: the pyramid beside the encoder; distill: a training step beside upstream's; sampling: the sampler "
        "beside upstream's; data: loading images beside torchvision; startup: the start of commands beside `import torch`; "
        "all: all of these; environment: the demo's steps under variables of the allocator and the threads, on a CPU",
        choices=("all", "tokenizer", "distill", "sampling", "data", "startup", "environment"),
    )
    batch_size: int = MEASURE(1, "batch", positive(int), unit="images")
    repeats: int = MEASURE(3, "timed rounds, after one that is not", positive(int))
    device: str = shared.device(MEASURE)
    json: str = shared.json_file(MEASURE)
    gpu_report: bool = REPORT(
        False,
        "measure training, tokenizing and sampling at the paper's sizes on one GPU, within --minutes, and write a page; on a CPU "
        "it is rehearsed at tiny sizes, and its numbers mean nothing",
    )
    minutes: float = REPORT(
        9.0, "cases are measured in order of importance; those that no longer fit are named", positive(float)
    )
    out: str = REPORT(
        "", "the page; without it performance.md, of a rehearsal runs/performance-rehearsal.md", metavar="FILE"
    )
    tiny: bool = REPORT(False, "rehearse it at tiny sizes on a GPU too")
