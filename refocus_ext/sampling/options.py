"""Options of `sample`. Imports no torch, so that help is instant."""

from __future__ import annotations

import argparse

from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import non_negative, positive

STUDENT = Heading("student")
DRAW = Heading("what to draw")
PICTURES = Heading("pictures")
SETS = Heading("sets for FID (run the same command again to resume one)")
EDITING = Heading("editing")
SPEED = Heading("speed")


def probability(text: str) -> float:
    """A parser of numbers in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


probability.__name__ = "float"


class SampleOptions(Options):
    """
    Draws images from a student, or from any VAR in upstream's files; without further options a grid, samples.png. In
    fp32 on a CPU an image drawn alone in its batch equals upstream's for its seed, bit for bit; with --rng batch the
    whole batch does.

      bash run.sh sample --classes 207,"golden retriever" --count 8 --out dogs.png
      bash run.sh sample --npz samples.npz                 50 images a class, for `eval` or ADM's evaluator
      bash run.sh sample --steps-strip steps.png           from blurred to sharp
      bash run.sh sample --edit cat.jpg --mask 0.25,0.25,0.75,0.75 --classes 281
    """

    # identity: what the bits of a set depend on, besides the weights and the number of images (jobs.set_plan)
    student: str = STUDENT(
        "",
        "distill run, folder with var_dN.pth and its VAE, or a var_dN.pth; default: the newest runs/distill-*",
        metavar="RUN",
        identity=False,
    )
    vae: str = STUDENT("", "the VAE's weights, where they are not beside the student's", metavar="FILE", identity=False)
    class_names: str = STUDENT(
        "",
        "names of the classes by label, as a JSON list or one a line; default: the run's, or ImageNet's for 1000 classes",
        metavar="FILE",
        identity=False,
    )

    classes: str = DRAW(
        "",
        'numbers or names, separated by commas: 207,"golden retriever"; the word none draws without a class; default: an '
        "even spread over all classes",
        metavar="LIST",
    )
    count: int | None = DRAW(
        None,
        "images in all, shared by the classes; default: 8 in a grid, 4 in a strip, 2 edits",
        positive(int),
        identity=False,
    )
    seed: int = DRAW(0, "each image's noise depends on this and its number alone", non_negative(int))
    cfg: float | None = DRAW(
        None,
        "strength of classifier-free guidance at the last scale; default: 4; 1.5 for --npz and --folder, and for students of "
        "preset demo",
        non_negative(float),
    )
    top_k: int = DRAW(900, "codes kept for each token; 0 keeps all", non_negative(int))
    top_p: float | None = DRAW(
        None, "probability kept for each token; 0 keeps all; default: 0.95, for --npz and --folder 0.96", probability
    )
    smooth: bool = DRAW(False, "mix codes by a Gumbel softmax (VAR's more_smooth): smoother pictures, not for FID")
    rng: str = DRAW(
        "image",
        "image: a generator for each image; batch: one for all, which gives upstream's bits for the same seed",
        choices=("image", "batch"),
        identity=False,
    )

    out: str = PICTURES(
        "", "the picture; default: samples.png, compare.png or edit.png", metavar="FILE", identity=False
    )
    steps_strip: str = PICTURES(
        "", "images coming into focus, scale by scale, instead of a grid", metavar="FILE", identity=False
    )
    compare: tuple[str, ...] | None = PICTURES(
        None,
        "two students side by side, from equal seeds and classes, instead of a grid",
        str,
        nargs=2,
        metavar=("A", "B"),
        identity=False,
    )

    npz: str = SETS(
        "", "ADM's form: arr_0 uint8 (N,H,W,3), shuffled, and labels in arr_1", metavar="FILE", identity=False
    )
    folder: str = SETS("", "PNG files; with --edit: of the edited images", metavar="DIR", identity=False)
    per_class: int | None = SETS(
        None, "images of each class; default: 50 unless there is --count", positive(int), identity=False
    )

    edit: str = EDITING("", "repaint a part of this image", metavar="IMAGE", identity=False)
    mask: str = EDITING(
        "",
        "the box to repaint, in fractions if all are at most 1, else in pixels, of the image's central square as the "
        "student sees it",
        metavar="X0,Y0,X1,Y1",
        identity=False,
    )
    outside: bool = EDITING(False, "keep the box and repaint around it", identity=False)

    batch_size: int = SPEED(32, "images drawn together; sets are bit-equal for equal batches only", positive(int))
    precision: str = SPEED(
        "auto",
        "auto is bf16 on GPUs (fp16 on those without it) and fp32 on CPUs; only fp32 has the bits of upstream's own steps",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = SPEED(False, "torch.compile the feed-forward networks and the decoder; not bit-equal")
    stock: bool = SPEED(False, "upstream's own sampling steps, slower, with the same bits in fp32", identity=False)
    device: str = shared.device(SPEED)

    def several_processes(self) -> bool:
        """Only sets of images are worth it; a picture is drawn by one process."""
        return bool(self.npz or self.folder)
