"""The presets: for each its values of every stage, side by side. Another preset is one more entry of PRESETS."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from refocus_ext.errors import UsageError

Value = int | float | str | tuple[int, ...]
Stage = Mapping[str, Value]

VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

# fmt: off
_PAPER_TOKENIZER: Stage = dict(
    image_size=256, patch_nums=VAR_PATCH_NUMS, codebook_size=8192, ch=160, focus_states=4, rho_max=12.0,
    l1=0.2, lpips=1.0, gan=0.4, steps=100_000, warm_autoencoder=1000, batch_size=256, lr=1e-4, alias_lr=1e-4,
    lr_end=0.01, warmup=1000, beta1=0.5, beta2=0.9, weight_decay=0.05, ema=0.9999, revive=1000, workers=8,
    save_every=1000, picture_every=2000, clip=1.0, gan_floor=0.1, codebook_images=1024,
)
# As VAR's authors train a VQVAE in their public vaex.
_VAEX_TOKENIZER: Stage = {
    **_PAPER_TOKENIZER, "disc": "dino", "disc_augment": "on", "bcr": 4.0, "gan_floor": 0.015, "gan_start": 0.22,
    "gan_warmup": 2000, "batch_size": 768, "lr": 3e-4, "lr_end": 0.3, "weight_decay": 0.005, "clip": 10.0, "dropout": 0.05,
}
_PAPER_DISTILL: Stage = dict(
    depth=16, num_classes=1000, crops=10, steps=400_000, batch_size=256, lr=1e-4, workers=8, save_every=2500, keep=2,
    picture_every=5000, log_every=100, val_images=1024, samples=16,
)
_PAPER_ABLATE: Stage = dict(depth=16, tokenizer_steps=100_000, distill_steps=400_000, images=10_000)

# Drawn letters at 64 pixels, for two CPU cores.
_LETTERS_TOKENIZER: Stage = dict(
    image_size=64, patch_nums=(1, 2, 3, 4), codebook_size=1024, ch=32, focus_states=3, rho_max=6.0,
    l1=1.0, lpips=0.0, gan=0.0, steps=900, warm_autoencoder=200, batch_size=16, lr=6e-4, alias_lr=1e-3,
    lr_end=0.05, warmup=20, beta1=0.9, beta2=0.99, weight_decay=0.0, ema=0.0, revive=25, workers=0,
    save_every=100, picture_every=300, clip=1.0, gan_floor=0.1, codebook_images=512,
)
_LETTERS_DISTILL: Stage = dict(
    depth=6, num_classes=0, crops=2, steps=700, batch_size=32, lr=2.4e-3, workers=0, save_every=100, keep=1,
    picture_every=350, log_every=10, val_images=520, samples=26,
)
_LETTERS_ABLATE: Stage = dict(depth=4, tokenizer_steps=900, distill_steps=700, images=5200)

PRESETS: dict[str, Mapping[str, Stage]] = {
    # Its prefixes train the tokens too, so that one token and five show a whole focus state: students of letters are the worse for
    # that, those of nineteen photographs are not.
    "demo": {
        "tokenizer": dict(
            prefix=1.0, prefix_trains="all",
            image_size=64, patch_nums=(1, 2, 3, 4), codebook_size=512, ch=32, focus_states=3, rho_max=6.0,
            l1=1.0, lpips=0.0, gan=0.0, steps=600, warm_autoencoder=200, batch_size=8, lr=6e-4, alias_lr=1e-3,
            lr_end=0.05, warmup=20, beta1=0.9, beta2=0.99, weight_decay=0.0, ema=0.0, revive=25, workers=0,
            save_every=100, picture_every=100, clip=1.0, gan_floor=0.1, codebook_images=64,
        ),
        "distill": dict(
            depth=8, num_classes=0, crops=4, steps=240, batch_size=8, lr=2.4e-3, workers=0, save_every=0, keep=1,
            picture_every=80, log_every=10, val_images=64, samples=16,
        ),
        "ablate": dict(depth=4, tokenizer_steps=300, distill_steps=400, images=304),
    },
    "letters": {"tokenizer": _LETTERS_TOKENIZER, "distill": _LETTERS_DISTILL, "ablate": _LETTERS_ABLATE},
    "letters-128": {
        "tokenizer": {**_LETTERS_TOKENIZER, "image_size": 128, "patch_nums": (1, 2, 3, 4, 6, 8), "rho_max": 9.0},
        "distill": _LETTERS_DISTILL,
        "ablate": _LETTERS_ABLATE,
    },
    "vanilla": {
        "tokenizer": {**_PAPER_TOKENIZER, "codebook_size": 4096},
        "distill": _PAPER_DISTILL,
        "ablate": _PAPER_ABLATE,
    },
    "paper": {"tokenizer": _PAPER_TOKENIZER, "distill": _PAPER_DISTILL, "ablate": _PAPER_ABLATE},
    "paper-512": {
        "tokenizer": {**_PAPER_TOKENIZER, "image_size": 512, "patch_nums": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)},
        "distill": {**_PAPER_DISTILL, "depth": 36},
        "ablate": {**_PAPER_ABLATE, "depth": 36},
    },
    "vaex": {"tokenizer": _VAEX_TOKENIZER, "distill": _PAPER_DISTILL, "ablate": _PAPER_ABLATE},
}
# fmt: on


# Other values of `distill` for students of more than so many blocks: the demo's d20 is to end within minutes on two CPU cores.
DEEPER: dict[str, tuple[int, Stage]] = {"demo": (12, dict(steps=80, lr=1.2e-3))}

# The preset that fits drawn pictures (images/sources/letters.py), by the word of --data that names them.
DRAWN = {"letters": "letters", "letters-fine": "letters", "words": "letters", "long-words": "letters-128"}


def preset_for(data: str) -> str:
    """The preset where none is typed: that of the drawn pictures which --data names, demo without --data, else paper."""
    return DRAWN.get(_word(data), "paper") if data else "demo"


def default_tokenizer_run(data: str) -> str:
    """The run folder of stage 1 where none is typed; drawn pictures have one of their own beside the demo's."""
    return f"runs/tokenizer{_suffix(data)}"


def default_distill_run(data: str, depth: int) -> str:
    """The same of stage 2."""
    return f"runs/distill{_suffix(data)}-d{depth}"


def _suffix(data: str) -> str:
    return f"-{_word(data)}" if _word(data) in DRAWN else ""


def _word(data: str) -> str:
    return data.partition(":")[0].removesuffix("-unseen")


def preset_of_tokenizer(tokenizer: str, data: str) -> str:
    """The preset of stage 2 where none is typed: that of the tokenizer's run, vanilla for a file of weights; where there is no
    run yet, or that of the demo's photographs is given --data, as for a tokenizer.

    Args:
        tokenizer: a run folder or a file; without one the run folder of stage 1 for this data.

    Raises:
        UsageError: the run's configuration names no preset of this version.
    """
    run = Path(tokenizer or default_tokenizer_run(data))
    if run.is_file():
        return "vanilla"
    if not (run / "config.json").is_file():
        return preset_for(data)
    theirs, their_data = "", ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        options = json.loads((run / "config.json").read_text())["options"]
        theirs, their_data = str(options["preset"]), str(options.get("data", ""))
    if theirs not in PRESETS:
        found = f"has the preset '{theirs}', which this version does not know" if theirs else "names no preset"
        raise UsageError(f"--tokenizer {run} {found}; give --preset one of {', '.join(PRESETS)}.")
    return preset_for(data) if theirs == "demo" and not their_data and data else theirs


def preset_names() -> list[str]:
    """What --preset can be."""
    return list(PRESETS)


def presets_of(stage: str) -> dict[str, Stage]:
    """The values of a stage under every preset that has some; none for a command without presets."""
    return {name: stages[stage] for name, stages in PRESETS.items() if stage in stages}


def preset(name: str, stage: str) -> Stage:
    """The values of one stage under one preset.

    Raises:
        UsageError: there is no such preset, or it has none for this stage.
    """
    known = presets_of(stage)
    if name not in known:
        why = f"has no values for `{stage}`" if name in PRESETS else "does not exist"
        raise UsageError(f"preset {name} {why}; give --preset one of {', '.join(known)}.")
    return known[name]
