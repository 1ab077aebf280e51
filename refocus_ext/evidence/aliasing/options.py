"""Options of the optics commands. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.optics.names import BLURS, CHARTS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import non_negative, positive

DRAW = Heading("what to draw")
FOCUS = Heading("focus pyramid")
OPTICS = Heading("optics")
TOKENIZERS = Heading("tokenizers")
SAMPLES = Heading("samples")
SPEED = Heading("speed")
RESULTS = Heading("results")


class PyramidOptions(Options):
    """
    Draws figure 2 of the paper for any picture: plain decimation D_k, the focused view L_k, the alias residual A_k and
    the focus state F_k of every state, with radii and scales, each above its spectrum.
    """

    image: str = DRAW("", "a photograph; its central square is drawn", metavar="IMAGE", positional=True)
    chart: str = DRAW("", "a built-in test chart instead; without both the zone plate", choices=CHARTS)
    image_size: int = DRAW(256, "the square is resized to this, a multiple of 16", positive(int), unit="pixels")
    blur: str = FOCUS(
        "disk", "defocus PSF; with none F_k is the picture itself and L_k and A_k keep the disk", choices=BLURS
    )
    focus_states: int = FOCUS(4, "K, number of focus states", positive(int))
    rho_max: float = FOCUS(12.0, "radius of the widest PSF", non_negative(float), unit="pixels")
    out: str = RESULTS("runs/pyramid.png", "the picture", metavar="FILE")
    json: str = shared.json_file(RESULTS, "also write radii, scales and energies to this file, as JSON")


class AliasingOptions(Options):
    """
    Measures on test charts what defocus, Gaussian, sinc, box and bicubic filters let alias and what they cost in detail
    (seconds on one CPU core). --data adds photographs, --tokenizer how trained tokenizers respond to shifts of less than
    a latent cell, --samples how the energy spectrum of generated images follows that of --reference (with these
    and without --data the filters are left out). Nothing is random.
    """

    data: tuple[str, ...] = OPTICS(
        (),
        "folders of photographs (searched at any depth) or single ones, measured beside the charts",
        metavar="DIR_OR_IMAGE",
        nargs="+",
    )
    images: int | None = OPTICS(
        None,
        "at most this many photographs, evenly spread; without it all for the optics and 32 for tokenizers",
        positive(int),
    )
    image_size: int = OPTICS(
        256, "charts and centre crops of photographs, a multiple of 16, at least 64", positive(int), unit="pixels"
    )
    focus_states: int = OPTICS(4, "K, number of focus states", positive(int))
    rho_max: float = OPTICS(12.0, "radius of the widest PSF", non_negative(float), unit="pixels")
    tokenizer: tuple[str, ...] = TOKENIZERS(
        (),
        "run folders of `bash run.sh tokenizer` or published vae_*.pth files (plain VAR), measured on shifted images: "
        "those of --data, else the demo photographs",
        metavar="RUN|FILE",
        nargs="+",
    )
    patch_nums: tuple[int, ...] | None = shared.patch_nums(TOKENIZERS)
    blur: str = TOKENIZERS(
        "",
        "of a bare file: defocus PSF, with the focus states and radius of the optics; without it none, because VAR's weights "
        "were not trained on focus states",
        choices=BLURS,
    )
    samples: str = SAMPLES(
        "",
        "generated images whose energy spectrum is compared: an npz with arr_0 (N,H,W,3) uint8, or a folder",
        metavar="NPZ_OR_DIR",
    )
    reference: str = SAMPLES("", "the data they are compared with, in the same forms", metavar="NPZ_OR_DIR")
    device: str = shared.device(SPEED, "of the tokenizers: ")
    out: str = RESULTS("runs/aliasing", "folder of report.md and the plots", metavar="DIR")
    json: str = shared.json_file(RESULTS)
