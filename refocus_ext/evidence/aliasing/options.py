"""Options of the optics commands. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses

from refocus_ext.optics.names import BLURS, CHARTS
from refocus_ext.options import shared as common
from refocus_ext.options.parser import non_negative, option, positive

PYRAMID_DESCRIPTION = """
Draws figure 2 of the paper for any picture: plain decimation D_k, the focused view L_k, the alias residual A_k and the
focus state F_k of every state, with radii and scales, each above its spectrum.
"""
ALIASING_DESCRIPTION = """
Measures on test charts what defocus, Gaussian, sinc, box and bicubic filters let alias and what they cost in detail
(seconds on one CPU core). --data adds photographs, --tokenizer how trained tokenizers take shifts of less than a
latent cell, --samples how the energy spectrum of generated images follows that of --reference. Nothing is random.
"""


@dataclasses.dataclass(frozen=True)
class PyramidOptions:
    """Figure 2 of the paper for any picture."""

    # fmt: off
    image: str = option("", "a photograph; its central square is drawn", metavar="IMAGE", positional=True, group="what to draw")
    chart: str = option(
        "", "a built-in test chart instead; without both the zone plate", choices=CHARTS, group="what to draw",
    )
    image_size: int = option(256, "the square is resized to this, a multiple of 16", unit="pixels", kind=positive(int), group="what to draw")
    blur: str = option("disk", "defocus PSF; with none F_k is the picture itself and L_k and A_k keep the disk", choices=BLURS, group="focus pyramid")
    focus_states: int = option(4, "K, number of focus states", kind=positive(int), group="focus pyramid")
    rho_max: float = option(12.0, "radius of the widest PSF", unit="pixels", kind=non_negative(float), group="focus pyramid")
    out: str = option("runs/pyramid.png", "the picture", metavar="FILE", group="results")
    json: str = option("", "write radii, scales and energies here", metavar="FILE", group="results")
    # fmt: on


@dataclasses.dataclass(frozen=True)
class AliasingOptions:
    """The alias benchmark: optics always, tokenizers and samples where they are given."""

    # fmt: off
    data: tuple[str, ...] = option(
        (), "folders of photographs (all in them, at any depth) or single ones, measured beside the charts",
        metavar="DIR_OR_IMAGE", several=True, group="optics",
    )
    images: int = option(
        None, "at most this many photographs, evenly spread; without it all for the optics and 32 for tokenizers",
        kind=positive(int), group="optics",
    )
    image_size: int = option(256, "charts and centre crops of photographs, a multiple of 16, at least 64", unit="pixels", kind=positive(int), group="optics")
    focus_states: int = option(4, "K, number of focus states", kind=positive(int), group="optics")
    rho_max: float = option(12.0, "radius of the widest PSF", unit="pixels", kind=non_negative(float), group="optics")
    tokenizer: tuple[str, ...] = option(
        (), "run folders of `bash run.sh tokenizer` or published vae_*.pth files (plain VAR), measured on shifted images: "
        "those of --data, else the demo photographs", metavar="RUN", several=True, group="tokenizers",
    )
    samples: str = option(
        "", "generated images whose energy spectrum is compared: an npz with arr_0 (N,H,W,3) uint8, or a folder",
        metavar="NPZ_OR_DIR", group="samples",
    )
    reference: str = option("", "the data they are compared with, likewise", metavar="NPZ_OR_DIR", group="samples")
    device: str = common.device("speed", "of the tokenizers: ")
    out: str = option("runs/aliasing", "folder of report.md and the plots", metavar="DIR", group="results")
    json: str = common.json_file("results")
    # fmt: on
