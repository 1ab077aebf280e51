"""Options of `eval`. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses

from refocus_ext.options import shared as common
from refocus_ext.options.parser import non_negative, option, positive

EVAL_DESCRIPTION = """
With --samples: FID, sFID, Inception Score, precision and recall as ADM's evaluator defines them, beside the paper's
numbers. Needs Inception's weights as a local file.

  bash run.sh eval --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz

Without: measures a finished tokenizer on validation images: PSNR, SSIM and LPIPS of each focus state's prefix, rFID,
use of the codebook per token scale, explained variance of the alias tokens. LPIPS and rFID need the weights of
their networks as local files; what cannot be measured is listed with the reason.
"""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """What samples or a finished tokenizer are measured on, and with which networks."""

    # fmt: off
    samples: str = option("", "npz or folder of images: FID, sFID, IS, precision and recall", metavar="NPZ_OR_DIR", group="samples")
    reference: str = option(
        "", "what they are compared with: ADM's npz (its stored statistics and images), or a folder of images",
        metavar="NPZ_OR_DIR", group="samples",
    )
    depth: int = option(
        None, "the paper's model whose published numbers are printed beside; without it all", kind=int, choices=(12, 16, 20, 24),
        group="samples",
    )

    tokenizer: str = option("runs/tokenizer", "run folder of a finished tokenizer", metavar="RUN", group="a tokenizer")
    data: str = option(
        "", "ImageFolder whose val/CLASS/*.JPEG are measured; without it the data of the run itself", metavar="DIR",
        group="a tokenizer",
    )
    images: int = option(None, "at most this many images, evenly spread over val; without it all", kind=positive(int), group="a tokenizer")

    lpips_weights: str = option(
        "", "VGG16 for LPIPS of a tokenizer, torchvision's vgg16-397923af.pth; empty looks in torch's hub folder", metavar="FILE", group="networks",
    )
    inception_weights: str = option(
        "", "Inception for samples and rFID, torch-fidelity's weights-inception-2015-12-05-6726825d.pth or pytorch-fid's "
        "pt_inception-2015-12-05-6726825d.pth; empty looks in torch's hub folder", metavar="FILE", group="networks",
    )

    batch_size: int = option(None, "batch; without it 64 for samples, 16 for a tokenizer", unit="images", kind=positive(int), group="speed")
    workers: int = option(None, "loader processes; without it as many as the run had (for a folder of samples: threads, 4)", kind=non_negative(int), group="speed")
    device: str = common.device("speed")

    json: str = common.json_file("results")
    # fmt: on
