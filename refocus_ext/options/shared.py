"""Options that several commands have in the same words, each under that command's heading.

They are functions and no base class: a base's fields would come first, in --help and in the config.json of a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refocus_ext.options.fields import Heading
from refocus_ext.options.kinds import int_list, non_negative, number_or_auto, positive, share
from refocus_ext.options.presets import preset_names


def preset(under: Heading, text: str) -> str:
    return under("", text, choices=preset_names, told=True)


def patch_nums(under: Heading) -> tuple[int, ...] | None:
    text = "of a bare file: side of each token map; without it VAR's ten, 1 to 16; the image size is 16 times the last"
    return under(None, text, int_list, unit="latent cells")


def blur(under: Heading, choices: Sequence[str]) -> str:
    text = "of a bare file: defocus PSF; without it none, because VAR's weights were not trained on focus states"
    return under("", text, choices=choices)


def focus_states(under: Heading) -> int | None:
    text = "of a bare file: K, number of focus states; without it 4, or as many as its token maps allow"
    return under(None, text, positive(int))


def rho_max(under: Heading) -> float | None:
    text = "of a bare file: radius of the widest PSF; without it 12 at 256 pixels, in proportion at other sizes"
    return under(None, text, non_negative(float), unit="pixels")


def val_share(under: Heading) -> float | None:
    text = (
        "of a bare file, where the data has no val/: share of the images, chosen by their names, that is held out for "
        "validation and never trained on; of a tokenizer's run its own share holds"
    )
    return under(None, text, share)


_OF_GEOMETRY = {
    "image_size": "--image-size",
    "patch_nums": "--patch-nums",
    "states": "--focus-states",
    "rho_max": "--rho-max",
    "noise_min": "--noise-min",
    "noise_max": "--noise-max",
}


def with_options(message: str) -> str:
    """A library's message about a geometry as a sentence that ends with the options for the values it speaks of.

    >>> with_options("image_size 33 is not a multiple of the encoder stride 16; use 32 or 48")
    'image_size 33 is not a multiple of the encoder stride 16; use 32 or 48 (--image-size).'
    """
    flags = [flag for word, flag in _OF_GEOMETRY.items() if re.search(rf"\b{word}\b", message)]
    return message.removesuffix(".") + (f" ({', '.join(flags)})" if flags else "") + "."


def small_images(under: Heading) -> str:
    text = (
        "images whose shorter side is below the crop: refuse to start, or upsample them as VAR does; auto refuses in data "
        "sets of up to 5000 images and upsamples in larger ones (ImageNet has such images)"
    )
    return under("auto", text, choices=("auto", "refuse", "upsample"), told=True)


def small_images_as_run(under: Heading) -> str:
    text = (
        "images whose shorter side is below the crop: refuse to start, or upsample them as VAR does; without it as in the "
        "tokenizer's run, for a bare file upsample"
    )
    return under("", text, choices=("auto", "refuse", "upsample"), told=True)


def unfinished(under: Heading) -> bool:
    text = "take a tokenizer whose training was interrupted as it is now; its tokens are worth nothing if it goes on"
    return under(False, text, identity=False)


def crop_scale(under: Heading) -> float:
    return under(1.125, "the shorter side is resized to this many crops before the random crop", positive(float))


def batch_size(under: Heading) -> int:
    return under(None, "global batch, over all processes and micro-batches", positive(int), unit="images")


def accumulate(under: Heading) -> int:
    text = "micro-batches per step on each process; auto: as few as fit into the memory that is free"
    return under(1, text, number_or_auto, metavar="INT|auto", told=True)


def workers(under: Heading) -> int:
    return under(None, "loader processes", non_negative(int), told=True)


def device(under: Heading, prefix: str = "") -> str:
    """`prefix`: whose device it is."""
    return under("auto", f"{prefix}cpu, cuda or cuda:N; auto takes CUDA where there is one", identity=False)


def resume(under: Heading) -> str:
    text = (
        "auto: continue the run in --out; never: start a new one and move the old folder aside; or a checkpoint file to "
        "continue from"
    )
    return under("auto", text, metavar="auto|never|PATH", identity=False)


TENSORBOARD, WANDB = "tensorboard", "wandb"


def log(under: Heading) -> str:
    text = (
        "where metrics and pictures are shown, beside metrics.jsonl; wandb (Weights & Biases, the package wandb) is offline, in "
        "the folder wandb/ of the run, unless WANDB_MODE=online is set"
    )
    return under(TENSORBOARD, text, choices=(TENSORBOARD, WANDB, "none"), identity=False, added=True)


def extend(under: Heading) -> bool:
    text = (
        "continue the run in --out beyond its steps, to --steps; from its last checkpoint on the schedule is that of the new "
        "number of steps"
    )
    return under(False, text, identity=False)


def dry_run(under: Heading, text: str = "print the plan and exit") -> bool:
    return under(False, text, identity=False)


def gpu_memory(under: Heading) -> float:
    text = "with --dry-run: plan for CUDA GPUs with so much memory free, whether or not this machine has one"
    return under(0.0, text, non_negative(float), unit="GiB", identity=False)


def json_file(under: Heading, text: str = "also write the numbers to this file, as JSON") -> str:
    return under("", text, metavar="FILE", identity=False)
