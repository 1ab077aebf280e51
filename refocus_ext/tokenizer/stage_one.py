"""How a tokenizer was trained, as far as later commands need it: a typed object read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refocus_ext.tokenizer.options import TokenizerOptions


@dataclass(frozen=True)
class StageOne:
    """Options of a finished stage-1 run; see `TokenizerOptions` for their meaning."""

    preset: str
    data: str
    small_images: str
    crop_scale: float
    workers: int
    steps: int | None  # None if the configuration lacks it
    image_size: int
    patch_nums: tuple[int, ...]
    codebook_size: int
    latent_channels: int
    ch: int
    commitment: float
    val_share: float = 0.0

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> StageOne:
        """From the entry "options" of a run's config.json; an entry that an old file lacks gets the option's default.

        Raises:
            KeyError, TypeError, ValueError: it does not describe a tokenizer.
        """
        defaults = TokenizerOptions()
        return cls(
            preset=str(options.get("preset", defaults.preset)),
            data=str(options.get("data", defaults.data)),
            small_images=str(options.get("small_images", defaults.small_images)),
            crop_scale=float(options.get("crop_scale", defaults.crop_scale)),
            workers=int(options.get("workers") or 0),
            steps=options.get("steps"),
            image_size=int(options["image_size"]),
            patch_nums=tuple(int(side) for side in options["patch_nums"]),
            codebook_size=int(options["codebook_size"]),
            latent_channels=int(options["latent_channels"]),
            ch=int(options["ch"]),
            commitment=float(options["commitment"]),
            val_share=float(options.get("val_share", defaults.val_share)),
        )
