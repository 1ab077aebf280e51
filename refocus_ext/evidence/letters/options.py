"""Options of `legibility`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import guidance_list, positive
from refocus_ext.options.presets import DRAWN

WHAT = Heading("what is read")
HOW = Heading("how")


class LegibilityOptions(Options):
    """
    Measures pictures of letters: whether a small classifier reads the letter that was asked for, how far its features are
    from those of fresh letters, and whether edges are jagged or grounds show moire.

      bash run.sh legibility --student runs/distill-letters-d6 [--cfg 0,1.5,3,5 --picture guidance.png]
      bash run.sh legibility --tokenizer runs/tokenizer-letters
      bash run.sh legibility --samples samples.npz

    Without any of these: the measures of letters that are spoiled on purpose, which they must tell apart.
    """

    student: tuple[str, ...] = WHAT(
        (), "distill runs or their exported files: their samples are measured", metavar="RUN|FILE", nargs="+"
    )
    tokenizer: str = WHAT(
        "", "a tokenizer's run: held-out letters are measured after encoding and decoding", metavar="RUN"
    )
    samples: str = WHAT("", "an npz of `sample --npz`, with its labels", metavar="NPZ")
    train: str = WHAT(
        "", "instead train the classifier from scratch and write its weights to this file", metavar="FILE"
    )
    data: str = WHAT(
        "",
        f"the kind of letters: {', '.join(DRAWN)}; each also as NAME-unseen (fonts that training never has) or NAME:DIR (fonts of "
        "a folder); without it the kind that the run was trained on, for files and spoiled letters 'letters'",
        metavar="NAME",
    )
    reader: str = HOW(
        "", "weights of the classifier from --train; without it those that come with the project", metavar="FILE"
    )
    images: int = HOW(5200, "pictures that are measured, and as many fresh letters", positive(int))
    batch_size: int = HOW(100, "pictures at once", positive(int))
    image_size: int | None = HOW(
        None, "of spoiled letters; without it 64, of long-words 128", positive(int), unit="pixels"
    )
    cfg: tuple[float, ...] = HOW(
        (1.5,),  # FOR_FID of sampling/sampler.py
        "strength of classifier-free guidance of a student's samples, as in `sample`; of several, each is measured",
        guidance_list,
    )
    seed: int = HOW(0, "of the samples")
    picture: str = HOW(
        "",
        "also draw the kinds of letters, and spoiled ones, to this PNG; of students at several guidances, how plain their letters "
        "are against how varied",
        metavar="FILE",
    )
    device: str = shared.device(HOW)
    json: str = shared.json_file(HOW)
