"""Options of `sample`. Standard library only, so that help is instant."""

from __future__ import annotations

import argparse
import dataclasses

from refocus_ext.options import shared as common
from refocus_ext.options.parser import non_negative, option, positive

SAMPLE_DESCRIPTION = """
Draws images from a student, or from any VAR in upstream's files. Without more it is a grid, samples.png. In fp32 on
a CPU an image alone in its batch is upstream's to the bit for its seed; --rng batch is, for the whole batch.

  bash run.sh sample --classes 207,"golden retriever" --count 8 --out dogs.png
  bash run.sh sample --npz samples.npz                 50 images a class, for `eval` or ADM's evaluator
  bash run.sh sample --steps-strip steps.png           from blurred to sharp
  bash run.sh sample --edit cat.jpg --mask 0.25,0.25,0.75,0.75 --classes 281
"""


def probability(text: str) -> float:
    """A parser of numbers in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


probability.__name__ = "float"


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """What a student draws, how, and where it goes."""

    # fmt: off
    student: str = option(
        "", "distill run, folder with var_dN.pth and its VAE, or a var_dN.pth; default: the newest runs/distill-*", metavar="RUN",
        group="student",
    )
    vae: str = option("", "the VAE's weights, where they are not beside the student's", metavar="FILE", group="student")
    class_names: str = option(
        "", "names of the classes by label, JSON list or one a line; default: the run's, or ImageNet's for 1000 classes",
        metavar="FILE", group="student",
    )

    classes: str = option(
        "", "numbers or names, separated by commas: 207,\"golden retriever\"; none is no class; default: an even spread",
        metavar="LIST", group="what to draw",
    )
    count: int = option(
        None, "images in all, shared by the classes; default: 8 in a grid, 4 in a strip, 2 edits", kind=positive(int), group="what to draw",
    )
    seed: int = option(0, "each image's noise depends on this and its number alone", kind=non_negative(int), group="what to draw")
    cfg: float = option(
        None, "strength of classifier-free guidance at the last scale; default: 4, for --npz and --folder 1.5",
        kind=non_negative(float), group="what to draw",
    )
    top_k: int = option(900, "codes kept for each token; 0 keeps all", kind=non_negative(int), group="what to draw")
    top_p: float = option(
        None, "probability kept for each token; 0 keeps all; default: 0.95, for --npz and --folder 0.96", kind=probability,
        group="what to draw",
    )
    smooth: bool = option(False, "mix codes by a Gumbel softmax (VAR's more_smooth): smoother pictures, not for FID", group="what to draw")
    rng: str = option(
        "image", "image: a generator for each image; batch: one for all, upstream's bits for the same seed", choices=("image", "batch"),
        group="what to draw",
    )

    out: str = option("", "the picture; default: samples.png, compare.png or edit.png", metavar="FILE", group="pictures")
    steps_strip: str = option("", "images coming into focus, scale by scale, instead of a grid", metavar="FILE", group="pictures")
    compare: tuple[str, ...] = option(
        None, "two students side by side, from equal seeds and classes, instead of a grid", kind=str, nargs=2, metavar=("A", "B"),
        group="pictures",
    )

    npz: str = option("", "ADM's form: arr_0 uint8 (N,H,W,3), shuffled, and labels in arr_1", metavar="FILE", group="sets for FID (typed again, they continue)")
    folder: str = option("", "PNG files; with --edit: of the edited images", metavar="DIR", group="sets for FID (typed again, they continue)")
    per_class: int = option(
        None, "images of each class; default: 50 unless there is --count", kind=positive(int), group="sets for FID (typed again, they continue)",
    )

    edit: str = option("", "repaint a part of this image", metavar="IMAGE", group="editing")
    mask: str = option(
        "", "the box to repaint, in fractions if all are at most 1, else in pixels, of the image's central square as the "
        "student sees it", metavar="X0,Y0,X1,Y1", group="editing",
    )
    outside: bool = option(False, "keep the box and repaint around it", group="editing")

    batch_size: int = option(32, "images drawn together; sets are bit-equal for equal batches only", kind=positive(int), group="speed")
    precision: str = option("fp32", "bf16: autocast, faster on GPUs, not bit-equal to fp32", choices=("fp32", "bf16"), group="speed")
    compile: bool = option(False, "torch.compile of the feed-forward networks and the decoder, not bit-equal", group="speed")
    stock: bool = option(False, "upstream's own sampling steps, slower, with the same bits in fp32", group="speed")
    device: str = common.device("speed")
    # fmt: on
