"""The names of blurs and test charts. Standard library only, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Blur:
    """Properties of a blur for commands and figures; its PSF is the entry of the same name in `psf.KERNELS`.

    Args:
        title: in captions.
        shaped_by: the parameter of the PSF of a focus state: its "radius" (pixels), its decimation "factor", or "nothing".
        colour: in plots.
    """

    title: str
    shaped_by: Literal["radius", "factor", "nothing"]
    colour: str


# A new blur needs an entry here and one in `psf.KERNELS`; importing psf fails if one of them is missing.
BLUR_TABLE: dict[str, Blur] = {
    "disk": Blur("defocus disk", shaped_by="radius", colour="#d62728"),
    "gaussian": Blur("Gaussian of equal variance", shaped_by="radius", colour="#1f77b4"),
    "sinc": Blur("windowed sinc", shaped_by="factor", colour="#2ca02c"),
    "sharp": Blur("focus states without blur", shaped_by="nothing", colour="#9467bd"),
    "none": Blur("no blur", shaped_by="nothing", colour="#7f7f7f"),
}
BLURS = tuple(BLUR_TABLE)
VIEWS = ("full", "half", "decimated")  # sizes of the views that the structure tokenizer encodes
CHARTS = ("zone-plate", "gratings", "edges", "text", "weave")
