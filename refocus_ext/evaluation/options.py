"""Options of `eval`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.optics.names import BLURS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import non_negative, positive

SAMPLES = Heading("samples")
TOKENIZER = Heading("a tokenizer")
NETWORKS = Heading("networks")
SPEED = Heading("speed")
RESULTS = Heading("results")


class EvalOptions(Options):
    """
    With --samples: FID, sFID, Inception Score, precision and recall as ADM's evaluator defines them, beside the paper's
    numbers. Needs Inception's weights as a local file.

      bash run.sh eval --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz
      bash run.sh eval --reference pictures/ --write-reference pictures.npz

    Without --samples: measures a finished tokenizer on validation images: PSNR, SSIM and LPIPS of each focus state's
    prefix, rFID, use of the codebook per token scale, explained variance of the alias tokens. LPIPS and rFID need the
    weights of their networks as local files; what cannot be measured is listed with the reason.
    """

    samples: str = SAMPLES("", "npz or folder of images: FID, sFID, IS, precision and recall", metavar="NPZ_OR_DIR")
    reference: str = SAMPLES(
        "",
        "what they are compared with: ADM's npz (its stored statistics and images), pytorch-fid's npz (statistics; FID only), "
        "one of --write-reference, or a folder of images",
        metavar="NPZ_OR_DIR",
    )
    write_reference: str = SAMPLES(
        "",
        "instead of measuring, write the statistics of --reference to this npz (mu, sigma, mu_s, sigma_s: ADM's tools read it); "
        "it can be a --reference from then on",
        metavar="FILE",
    )
    reference_size: int | None = SAMPLES(
        None,
        "side to which a folder's images are centre-cropped and resized for --write-reference; without it they must have "
        "one size",
        positive(int),
        unit="pixels",
    )
    depth: int | None = SAMPLES(
        None,
        "the paper's model whose published numbers are printed beside; without it all of them",
        int,
        choices=(12, 16, 20, 24),
    )

    tokenizer: str = TOKENIZER(
        "runs/tokenizer",
        "run folder of a finished tokenizer, or a file of VQVAE weights such as vae_ch160v4096z32.pth (needs --data)",
        metavar="RUN|FILE",
    )
    patch_nums: tuple[int, ...] | None = shared.patch_nums(TOKENIZER)
    blur: str = shared.blur(TOKENIZER, BLURS)
    focus_states: int | None = shared.focus_states(TOKENIZER)
    rho_max: float | None = shared.rho_max(TOKENIZER)
    data: str = TOKENIZER(
        "",
        "ImageFolder whose val/CLASS/*.JPEG are measured; for a bare file a folder without val/ too, of which all images are "
        "measured; without it the data of the run itself",
        metavar="DIR",
    )
    crop_scale: float | None = TOKENIZER(
        None,
        "the shorter side is resized to this many crops before the centre crop: 1.125 as in VAR's rFID (288 px for 256), 1 as in "
        "LlamaGen's; without it as the run had",
        positive(float),
    )
    images: int | None = TOKENIZER(
        None, "at most this many images, evenly spread over val; without it all", positive(int)
    )

    lpips_weights: str = NETWORKS(
        "",
        "VGG16 for LPIPS of a tokenizer, torchvision's vgg16-397923af.pth; without this option it is taken from torch's hub "
        "folder",
        metavar="FILE",
    )
    inception_weights: str = NETWORKS(
        "",
        "Inception for samples and rFID, torch-fidelity's weights-inception-2015-12-05-6726825d.pth or pytorch-fid's "
        "pt_inception-2015-12-05-6726825d.pth; without this option it is taken from torch's hub folder",
        metavar="FILE",
    )

    batch_size: int | None = SPEED(
        None, "batch; without it 64 for samples, 16 for a tokenizer", positive(int), unit="images"
    )
    workers: int | None = SPEED(
        None,
        "loader processes; without it as many as the run had (for a folder of samples: threads, 4)",
        non_negative(int),
    )
    device: str = shared.device(SPEED)

    json: str = shared.json_file(RESULTS)

    def several_processes(self) -> bool:
        """Inception's features of samples are shared out; a tokenizer is measured by one process."""
        return bool(self.samples or self.write_reference)
