"""What tests of commands share: the smallest stage-1 run, and a command's exit code in this process."""

from __future__ import annotations

from typing import Any

from refocus_ext.commands import command_line, main
from refocus_ext.tokenizer.stage_one import StageOne

TINY = tuple(
    "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 --latent-channels 8 "
    "--batch-size 4 --steps 6 --warm-autoencoder 2 --picture-every 6 --save-every 2 --revive 1 "
    "--val-images 8 --codebook-images 16".split()
)

# A stage-1 run as its config.json would tell it, for tokenizers that no run has trained.
TRAINED_WITH = StageOne(
    preset="demo",
    data="",
    small_images="auto",
    crop_scale=1.125,
    workers=0,
    steps=None,
    image_size=64,
    patch_nums=(1, 2, 3, 4),
    codebook_size=64,
    latent_channels=8,
    ch=32,
    commitment=0.25,
)


def parsed(*argv: str) -> Any:
    """The options of a command line."""
    return command_line().parse_args(list(argv))


def run_main(*argv: str) -> int:
    """main(), with argparse's SystemExit as a code."""
    try:
        return main(list(argv))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
