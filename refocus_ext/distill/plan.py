"""The plan of a stage-2 command: options completed and checked, sizes of model and files, the printed plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from patches import Upstream
from patches.protocols import as_module
from refocus_ext.counting import counted
from refocus_ext.distill.advice import alias_command, alias_run
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.start import Start
from refocus_ext.distill.teacher.cost import teacher_overhead
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import TeacherOverhead
from refocus_ext.distill.teacher.kinds import OFF, teacher_class
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.distill.teacher.shown import NO_ALIASES, OWN, SHOWN_IN_TRAINING
from refocus_ext.distill.teacher_options import check_teacher, teacher_settings, trains_gates
from refocus_ext.engine.checks import check_run_options
from refocus_ext.engine.devices import bf16_note, precision_in_words
from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import IMAGENET_CLASSES
from refocus_ext.images.class_numbers import are_wnids
from refocus_ext.images.sources.interface import ImageSource, classes_in_words
from refocus_ext.options.presets import default_distill_run, preset
from refocus_ext.storage.weights import state_bytes
from refocus_ext.tokens.trained_tokenizer import Tokenizer

ADAMW_BYTES = 16  # fp32 weight, gradient and two moments of one parameter
STATE_BYTES = 12  # of them in a checkpoint
WEIGHT_BYTES = 4  # of a parameter that is not trained


def complete(options: DistillOptions) -> DistillOptions:
    """The options, with empty values replaced by their defaults."""
    out = options.out or default_distill_run(options.data, options.depth)
    shared_aln = options.shared_aln if options.shared_aln != "auto" else ("on" if options.depth >= 36 else "off")
    return options.replace(out=out, shared_aln=shared_aln)


def why_preset(options: DistillOptions, tokenizer: Tokenizer) -> str:
    if options.data:
        return f"preset {options.preset}: training on {options.data}"
    where = tokenizer.trained_with.data or "the photographs inside scikit-image"
    return f"preset {options.preset}: training on {where}, as the tokenizer {tokenizer.path} was"


def check_options(options: DistillOptions) -> None:
    """Raises UsageError for errors that can be found before anything is loaded."""
    if options.init_classes and not options.init:
        raise UsageError(f"--init-classes {options.init_classes} needs --init FILE, whose classes it names.")
    if options.crops == 0 and options.cache != "off":
        raise UsageError(
            "--crops 0 draws a new crop every epoch, which a cache cannot hold; add --cache off, or give --crops N."
        )
    if options.teacher != "off" and options.teacher_blocks > options.depth:
        raise UsageError(
            f"--teacher-blocks {options.teacher_blocks} is more than the {options.depth} blocks of --depth {options.depth}; "
            "choose fewer."
        )
    check_teacher(options)


def check_data(options: DistillOptions, images: ImageSource, val: ImageSource) -> int:
    """The number of classes of the student's embedding.

    Raises:
        UsageError: the options do not fit the data or each other, the data has too many classes, or too few images to validate.
    """
    check_run_options(options, images)
    if options.num_classes and len(images.classes) > options.num_classes:
        raise UsageError(
            f"the data has {counted(len(images.classes), 'class', 'classes')}, more than "
            f"--num-classes {options.num_classes}; raise it, or set it to 0."
        )
    reads = options.teacher != OFF and options.teacher_aliases != NO_ALIASES
    if reads and (checked := min(len(val), options.val_images)) < 2:
        way = "give more validation images" if len(val) < 2 else "raise --val-images"
        raise UsageError(
            f"validation has {checked} image, but needs at least two images, because one control of the teacher uses the alias "
            f"tokens of another image; {way}, or train without a teacher (--teacher off)."
        )
    return options.num_classes or len(images.classes)


def rate_note(options: DistillOptions) -> str | None:
    """A note where the batch is not that of the preset's learning rate: --lr is absolute, VAR's is per 256 images."""
    values = preset(options.preset, "distill")
    lr, batch = values["lr"], values["batch_size"]
    assert isinstance(lr, float) and isinstance(batch, int)
    if options.batch_size == batch or options.lr != lr:
        return None
    scaled = lr * options.batch_size / batch
    return (
        f"--lr {lr:g} is for batches of {batch} images; in proportion, as VAR scales it, batches of {options.batch_size} "
        f"have --lr {scaled:.3g}"
    )


def numbers_note(options: DistillOptions, own: Sequence[str], images: ImageSource, classes: int) -> str | None:
    """A line on the labels of the data's class folders `own`, where it may not be the user's guess."""
    if options.class_numbers:
        last = len(own) - 1
        shown = ", ".join(f"{own[i]} is {images.classes.index(own[i])}" for i in sorted({0, last}))
        return f"the {len(own)} class folders have their numbers among {len(images.classes)} classes ({shown})"
    if are_wnids(own) and len(own) < classes == IMAGENET_CLASSES:
        return (
            f"the {len(own)} class folders are ImageNet's wnids, but get the labels 0 to {len(own) - 1}; with --class-numbers "
            "imagenet they keep ImageNet's"
        )
    return None


def teacher_geometry(options: DistillOptions, tokenizer: Tokenizer, upsamples: bool = False) -> TeacherGeometry | None:
    """The teacher's geometry, None if it is off.

    Args:
        upsamples: whether some images are smaller than the crop.

    Raises:
        UsageError: the tokenizer has no alias tokens, or an option is outside its limits.
    """
    if options.teacher == "off":
        return None
    if options.teacher_aliases == NO_ALIASES:  # the width and the number of blocks alone count
        return token_geometry(options, tokenizer)
    if tokenizer.bare:
        raise UsageError(
            f"--tokenizer {tokenizer.path} is a bare file without alias tokens, which the teacher reads; add --teacher off, or "
            f"train them first and give --tokenizer {alias_run(tokenizer)}: `{alias_command(options, tokenizer, upsamples)}`."
        )
    if tokenizer.alias is None:
        raise UsageError(
            f"--tokenizer {tokenizer.path} was trained without alias tokens (--alias off), which the teacher reads; give another "
            "tokenizer, or --teacher off."
        )
    patch_nums = tokenizer.trained_with.patch_nums
    try:
        return TeacherGeometry(
            width=64 * options.depth,
            code_dim=tokenizer.alias.geometry.code_dim,
            grids=tokenizer.alias.geometry.grids,
            patch_nums=patch_nums,
            states=tokenizer.pyramid.states_of(patch_nums),
            blocks=options.teacher_blocks,
            mask=options.mask,
            alias_scales=options.alias_scales or None,
            values=options.alias_values,
        )
    except ValueError as error:
        raise UsageError(f"{error} (--teacher-blocks, --alias-scales).") from None


class Sizes(NamedTuple):
    """Sizes of a run on one process without sharding."""

    cost: TeacherOverhead
    parameters: int  # trained ones
    memory: int  # bytes, without activations
    checkpoint: int  # bytes
    weights: int  # bytes of all weight files
    still: int = 0  # parameters without gradient and moments


def token_geometry(options: DistillOptions, tokenizer: Tokenizer) -> TeacherGeometry:
    """The width and token maps of a run without a teacher, as a teacher's geometry."""
    patch_nums = tokenizer.trained_with.patch_nums
    blocks = min(options.teacher_blocks, options.depth)
    return TeacherGeometry(64 * options.depth, 1, (1,), patch_nums, (1,) * len(patch_nums), blocks=blocks)


def sizes(
    upstream: Upstream, options: DistillOptions, geometry: TeacherGeometry | None, tokenizer: Tokenizer, classes: int
) -> Sizes:
    """Counted on fake tensors: nothing is allocated."""
    kind = teacher_class(options.teacher)
    cost = teacher_overhead(
        upstream,
        options.depth,
        geometry or token_geometry(options, tokenizer),
        tokenizer.trained_with.codebook_size,
        kind=kind or Teacher,
        settings=teacher_settings(options),
        num_classes=classes,
        shared_aln=options.shared_aln == "on",
    )
    parameters = cost.var_parameters + (kind.parameters_added(cost) if kind else 0)
    still = kind.parameters_still(cost) if kind else 0
    vae = state_bytes(as_module(tokenizer.vae))
    saved = WEIGHT_BYTES * still if kind and kind.saved else 0
    return Sizes(
        cost=cost,
        parameters=parameters,
        memory=ADAMW_BYTES * parameters + WEIGHT_BYTES * still,
        checkpoint=STATE_BYTES * parameters + saved,
        weights=4 * parameters + vae + saved,
        still=still,
    )


def require_memory(need: int, device: torch.device, options: DistillOptions, free: int | None) -> None:
    """Raises UsageError if weights, gradients and AdamW's moments alone do not fit into the `free` bytes of the device."""
    if free is None or need <= free:
        return
    where = "this machine" if device.type == "cpu" else f"{device}"
    raise UsageError(
        f"--depth {options.depth} needs {need / 2**30:.1f} GiB for weights, gradients and AdamW, but {where} has "
        f"{free / 2**30:.1f} GiB free; choose a smaller --depth"
        + (", or --parallel fsdp." if device.type != "cpu" else ".")
    )


def print_plan(
    options: DistillOptions,
    tokenizer: Tokenizer,
    geometry: TeacherGeometry | None,
    images: ImageSource,
    classes: int,
    size: Sizes,
    device: torch.device,
    start: Start | None = None,
) -> None:
    """Prints the plan in a few lines."""
    patch_nums = tokenizer.trained_with.patch_nums
    count = sum(pn * pn for pn in patch_nums)
    views = f"{options.crops}" if options.crops else "an unlimited number of"
    print(
        f"images: {len(images)} in {classes_in_words(images)}, {views} crops of {tokenizer.trained_with.image_size} px per image"
        + (", mirrored as well" if options.hflip else "")
    )
    print(
        f"student: VAR-d{options.depth}, {size.cost.var_parameters / 1e6:.0f}M parameters, {counted(classes, 'class', 'classes')}, "
        f"{count} tokens per image in {len(patch_nums)} scales, {tokenizer.trained_with.codebook_size} codes"
    )
    if start:
        print(f"starts from {start.path}")
        for line in start.lines:
            print(f"  {line}")
    for note in tokenizer.notes:
        print(f"tokenizer: {tokenizer.path}: {note}")
    kind = teacher_class(options.teacher)
    if geometry and kind and options.teacher_aliases == NO_ALIASES:
        print(f"teacher ({options.teacher}): without alias tokens: {kind.cost_in_words(size.cost)}")
    elif geometry and kind:
        print(
            f"teacher ({options.teacher}): alias gates in the last {geometry.blocks} blocks, {sum(geometry.tokens)} alias tokens "
            f"per image, mask {geometry.mask}: {kind.cost_in_words(size.cost)}"
        )
        if options.teacher_aliases != OWN:
            shown = SHOWN_IN_TRAINING[options.teacher_aliases]
            print(f"  in training it is shown {shown} (--teacher-aliases {options.teacher_aliases}), as a control")
    else:
        print("teacher: off, VAR's own training")
    print(
        f"training: {options.steps} steps of {options.batch_size} images, peak lr {options.lr:g}"
        + (f" ({options.lr * options.teacher_lr:g} for alias gates)" if geometry and trains_gates(options) else "")
        + f", in {precision_in_words(options.precision, device)} on {device}; "
        f"{size.memory / 2**30:.1f} GiB for weights, gradients and AdamW, {size.checkpoint / 2**30:.1f} GiB per checkpoint"
    )
    if faster := bf16_note(options.precision, device):
        print(f"note: {faster}")
    if options.preset == "demo" and options.depth > 8:
        print(
            f"note: --depth {options.depth} is large for two CPU cores (d20 takes 8 to 13 minutes); --depth 8 shows the "
            "same in about three"
        )


def print_cost(size: Sizes, options: DistillOptions) -> None:
    """Prints the FLOPs of a step, for --dry-run."""
    flops = step_flops(size, options)
    print(f"one step: {flops / 1e9:.1f} GFLOP per image ({size.cost.var_flops / 1e9:.1f} in a vanilla step)")


def step_flops(size: Sizes, options: DistillOptions) -> float:
    """FLOPs of a step, per image."""
    kind = teacher_class(options.teacher)
    return kind.step_flops(size.cost) if kind else size.cost.var_flops
