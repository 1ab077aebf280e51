"""The command that trains an alias tokenizer beside a bare file, for a user who wants a teacher: it runs as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

from refocus_ext.distill.options import DistillOptions
from refocus_ext.options.presets import preset
from refocus_ext.tokens.trained_tokenizer import Tokenizer


def alias_command(options: DistillOptions, tokenizer: Tokenizer, upsamples: bool) -> str:
    """The `tokenizer` command on the data, token maps and pyramid that these options of `distill` name.

    Args:
        upsamples: whether some images are smaller than the crop.
    """
    words = [
        "bash",
        "run.sh",
        "tokenizer",
        "--preset",
        options.preset,
        "--init",
        str(tokenizer.path),
        "--only",
        "alias",
    ]
    words += ["--blur", tokenizer.pyramid.blur, "--data", options.data]
    usual = preset(options.preset, "tokenizer")
    given = {
        "--val-share": options.val_share,
        "--small-images": "upsample" if upsamples else None,
        "--patch-nums": _unlike(usual["patch_nums"], tokenizer.trained_with.patch_nums),
        "--focus-states": options.focus_states,
        "--rho-max": options.rho_max,
        "--batch-size": _unlike(usual["batch_size"], options.batch_size),
        "--accumulate": _unlike(1, options.accumulate),
    }
    for flag, value in given.items():
        if value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"]
    return shlex.join([*words, "--out", alias_run(tokenizer)])


def alias_run(tokenizer: Tokenizer) -> str:
    """Its run folder."""
    return str(Path("runs") / f"alias-{tokenizer.path.stem}")


def _unlike(usual: object, value: object) -> object:
    """The value, or None if it is the preset's."""
    return None if value == usual else value
