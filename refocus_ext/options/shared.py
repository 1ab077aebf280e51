"""Options that several commands have in the same words. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses
from typing import Any

from refocus_ext.options.parser import non_negative, option, positive

VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def small_images(group: str) -> Any:
    return option(
        "auto",
        "images whose shorter side is below the crop: refuse to start, or upsample as VAR does; auto refuses "
        "up to 5000 images and upsamples beyond (ImageNet has such images)",
        choices=("auto", "refuse", "upsample"),
        group=group,
    )


def crop_scale(group: str) -> Any:
    text = "the shorter side is resized to this many crops before the random crop"
    return option(1.125, text, kind=positive(float), group=group)


def batch_size(group: str) -> Any:
    text = "global batch, over all processes and micro-batches"
    return option(None, text, unit="images", kind=positive(int), group=group)


def accumulate(group: str) -> Any:
    return option(1, "micro-batches per step on each process", kind=positive(int), group=group)


def workers(group: str) -> Any:
    return option(None, "loader processes", kind=non_negative(int), group=group, identity=False)


def device(group: str, prefix: str = "") -> Any:
    """`prefix`: whose device it is."""
    return option(
        "auto", f"{prefix}cpu, cuda or cuda:N; auto takes CUDA where there is one", group=group, identity=False
    )


def resume(group: str) -> Any:
    return option(
        "auto",
        "auto continues the run in --out, never starts afresh (the old folder is moved aside), or a checkpoint file",
        metavar="auto|never|PATH",
        group=group,
        identity=False,
    )


def dry_run(group: str) -> Any:
    return option(False, "print the plan and leave", group=group, identity=False)


def json_file(group: str) -> Any:
    return option("", "write the numbers here too", metavar="FILE", group=group, identity=False)


def identity(options: Any) -> dict[str, Any]:
    """The options that make two runs the same run, as JSON-able values."""
    fields = [field for field in dataclasses.fields(options) if field.metadata["identity"]]
    values = {field.name: getattr(options, field.name) for field in fields}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
