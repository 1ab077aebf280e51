"""The jobs of `sample`: grid, strip, comparison, edit, set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patches import FastSampling, patched
from patches.model_parts import compile_for_sampling
from patches.sampling import sample_as_upstream
from refocus_ext.engine.devices import autocast, autocast_dtype, precision_name
from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.images.order import spread
from refocus_ext.images.photographs import load_square
from refocus_ext.images.picture import image_bytes, save_png
from refocus_ext.sampling.editing import edit, kept_region, parse_box
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.pictures import draw_comparison, draw_edit, draw_grid, draw_strip
from refocus_ext.sampling.sample_set import Plan
from refocus_ext.sampling.sampler import FOR_FID, Guidance, Prefixes, for_pictures, sample_images
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.atomic import sha256

PER_CLASS = 50


def open_student(options: SampleOptions, source: str, world: World, option: str = "--student") -> Student:
    """Loads the student given by `option` and prints a line about it."""
    with named(option):
        student = load_student(source, world.device, vae=options.vae or None, class_names=options.class_names or None)
    if world.main:
        print(student.describe() + f", on {world.device}")
        for note in student.notes:
            print(f"note: {note}")
        codes = student.geometry.vocab_size
        if options.top_k > codes and options.given("top_k"):
            print(f"note: --top-k {options.top_k} is lowered to {codes}, the number of codes, which keeps all of them")
    return student


@contextlib.contextmanager
def ready(student: Student, options: SampleOptions) -> Iterator[None]:
    """Inside, the student samples with the speed options applied."""
    with contextlib.ExitStack() as stack:
        if not options.stock:
            stack.enter_context(patched(student.var, FastSampling()))
        if options.compile:
            compile_for_sampling(student.var, student.vae)
        yield


@contextlib.contextmanager
def precision(student: Student, options: SampleOptions) -> Iterator[None]:
    """Around each batch: autocast."""
    with autocast(autocast_dtype(options.precision, student.device), student.device):
        yield


# ------------------------------------------------------------------------------------------------ what is drawn


def guidance_of(student: Student, options: SampleOptions, *, for_set: bool = False) -> Guidance:
    """The guidance of the options; defaults differ between sets for FID and pictures."""
    default = FOR_FID if for_set else for_pictures(demo=student.is_demo)
    return Guidance(
        cfg=default.cfg if options.cfg is None else options.cfg,
        top_k=options.top_k,
        top_p=default.top_p if options.top_p is None else options.top_p,
        smooth=options.smooth,
    ).for_codes(student.geometry.vocab_size)


def given_labels(student: Student, options: SampleOptions) -> list[int]:
    """The labels of --classes."""
    with named("--classes"):
        return student.labels(options.classes)


def picture_labels(student: Student, options: SampleOptions, count: int) -> list[int]:
    """Labels of a picture's images: the given classes or an even spread, equal labels side by side."""
    if options.classes:
        classes = given_labels(student, options)
        total = options.count or max(count, len(classes))
    else:
        total = options.count or count
        classes = spread(student.trained_classes, total)
    if total < len(classes):
        raise UsageError(f"--count {total} is less than the {len(classes)} classes given; raise it or name fewer.")
    return [classes[i * len(classes) // total] for i in range(total)]


def set_plan(student: Student, options: SampleOptions) -> Plan:
    """The plan of a set: classes alternate, so that any number of images is spread as evenly as possible."""
    classes = given_labels(student, options) if options.classes else student.trained_classes
    total = options.count or (options.per_class or PER_CLASS) * len(classes)
    guidance = guidance_of(student, options, for_set=True)
    identity = {
        "weights": {path.name: sha256(path) for path in (student.files.var, student.files.vae)},
        "images": total,
        **options.identity(),
        "precision": precision_name(autocast_dtype(options.precision, student.device)),
        "classes": classes,
        "cfg": guidance.cfg,
        "top_k": guidance.top_k,
        "top_p": guidance.top_p,
    }
    labels = [classes[i % len(classes)] for i in range(total)]
    return Plan(labels, options.batch_size, student.image_size, options.seed, identity)


def drawer(student: Student, options: SampleOptions) -> Any:
    """The function that draws a batch of a set."""
    guidance = guidance_of(student, options, for_set=True)

    def draw(first: int, labels: Sequence[int]) -> np.ndarray:
        with precision(student, options):
            return image_bytes(sample_images(student, labels, seed=options.seed, first=first, guidance=guidance))

    return draw


def draw_images(student: Student, options: SampleOptions, labels: Sequence[int], guidance: Guidance) -> Tensor:
    """Images of a picture, in batches; with --rng batch as one upstream batch."""
    with precision(student, options):
        if options.rng == "batch":
            return sample_as_upstream(student.var, labels, seed=options.seed, guidance=guidance).cpu()
        starts = range(0, len(labels), options.batch_size)
        batches = [labels[first : first + options.batch_size] for first in starts]
        return torch.cat(
            [
                sample_images(student, batch, seed=options.seed, first=first, guidance=guidance).cpu()
                for first, batch in zip(starts, batches, strict=True)
            ]
        )


def describe_guidance(guidance: Guidance, options: SampleOptions, device: torch.device) -> str:
    """'seed 0, cfg 4, top-k 900, top-p 0.95', and the precision if it is not fp32."""
    dtype = autocast_dtype(options.precision, device)
    smooth = ", smooth" * guidance.smooth + f", {precision_name(dtype)}" * (dtype != torch.float32)
    return f"seed {options.seed}, cfg {guidance.cfg:g}, top-k {guidance.top_k}, top-p {guidance.top_p:g}{smooth}"


# ------------------------------------------------------------------------------------------------ pictures


def grid(student: Student, options: SampleOptions) -> int:
    """A grid of images with their classes."""
    labels, guidance = picture_labels(student, options, 8), guidance_of(student, options)
    images = draw_images(student, options, labels, guidance)
    return save(options.out or "samples.png", draw_grid(student, images, labels, title_of(student, guidance, options)))


def strip(student: Student, options: SampleOptions) -> int:
    """Images coming into focus."""
    labels, guidance = picture_labels(student, options, 4), guidance_of(student, options)
    prefixes = Prefixes(student)
    with precision(student, options):
        sample_images(student, labels, seed=options.seed, guidance=guidance, watch=prefixes)
    picture = draw_strip(student, prefixes.images, labels, title_of(student, guidance, options))
    return save(options.steps_strip, picture)


def compare(sources: Sequence[str], options: SampleOptions, world: World) -> int:
    """Two students, one row each, from the same seeds and classes."""
    students = [open_student(options, source, world, "--compare") for source in sources]
    with named("--compare"):
        check_same_classes(*students)
    labels = picture_labels(students[0], options, 8)
    each = [guidance_of(student, options) for student in students]
    # Both with the cfg of the first one; each keeps as many codes as it has.
    guidance = replace(max(each, key=lambda one: one.top_k), cfg=each[0].cfg)
    images = []
    for student, own in zip(students, each, strict=True):
        with ready(student, options):
            images.append(draw_images(student, options, labels, replace(own, cfg=guidance.cfg)))
    names = [Path(source).name for source in sources]
    picture = draw_comparison(students, names, images, labels, describe_guidance(guidance, options, students[0].device))
    return save(options.out or "compare.png", picture)


def check_same_classes(one: Student, other: Student) -> None:
    """Raises UsageError unless both students have equally many classes."""
    if one.num_classes != other.num_classes:
        raise UsageError(
            f"the students have {one.num_classes} and {other.num_classes} classes; choose two with the same classes."
        )


def edit_image(student: Student, options: SampleOptions) -> int:
    """An image with a part repainted."""
    with named("--mask"):
        box, unit = parse_box(options.mask, student.image_size)
        kept = kept_region(box, student.geometry.patch_nums[-1], options.outside)
    with named("--edit"):
        x = load_square(options.edit, student.image_size)[None]
    classes = given_labels(student, options) if options.classes else [student.num_classes]
    total = options.count or max(2, len(classes))
    labels = [classes[i * len(classes) // total] for i in range(total)]
    print(f"--mask in {unit}: {'keeps' if options.outside else 'repaints'} {box.pixels()} of {student.image_size}")
    guidance = guidance_of(student, options)
    with precision(student, options):
        result = edit(student, x, kept, labels, options.seed, guidance)
    for number, image in enumerate(image_bytes(result.edited_B3HW) if options.folder else ()):
        path = Path(options.folder) / f"edit-{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(str(path), Image.fromarray(image))
    return save(options.out or "edit.png", draw_edit(student, result, labels, title_of(student, guidance, options)))


def title_of(student: Student, guidance: Guidance, options: SampleOptions) -> str:
    return f"{student.path.name}  {describe_guidance(guidance, options, student.device)}"


def save(name: str, picture: Image.Image) -> int:
    """Writes a picture and prints its path and size.

    Raises:
        RunFailed: it cannot be written.
    """
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, picture)
    except OSError as error:
        raise RunFailed(f"{path} could not be written ({error.strerror}).") from error
    print(f"{path}: {picture.width} x {picture.height} pixels")
    return 0
