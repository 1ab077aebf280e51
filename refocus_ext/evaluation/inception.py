"""Inception features, their streaming statistics and the Frechet distance (FID: Heusel et al., 2017).

The network is torch-fidelity's port of the TensorFlow graph that FID is defined on, from a local file only.

sFID's features (Nash et al., 2021) are the first 7 channels of the graph's `mixed_6/conv`. torch-fidelity's own conversion
of the weights maps `mixed_6/conv/conv2d_params` to Mixed_6d.branch1x1.conv, so they are the output of Mixed_6d.branch1x1
after its ReLU, flattened with channels last, as in TensorFlow and in `mu_s` of ADM's reference files. This follows those
sources and has not been checked against published numbers: that would take the published weights and the TensorFlow
graph, to confirm that `mixed_6/conv:0` is the ReLU and not the convolution before it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import sha256
from refocus_ext.storage.weights import find_weights, read_state_dict

# One file under two names: torch-fidelity's and pytorch-fid's; the digits are the start of its sha256.
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_SHA256 = "6726825d"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILES[0]}"
SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d.branch1x1", 7
HOW_TO_GET = f"download {INCEPTION_URL} and give it with --inception-weights FILE"


def to_uint8(image_B3HW: Tensor) -> Tensor:
    """[-1,1] -> the 8 bits of a PNG (clamped, rounded to nearest), uint8."""
    return image_B3HW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


class Activations(NamedTuple):
    """The features of a batch of images that ADM's metrics need."""

    pool_BD: Tensor  # (B,2048), for FID, precision, recall and, through `class_logits`, the Inception Score
    spatial_BS: Tensor  # (B,2023), for sFID: 17 x 17 places x 7 channels, channels last


class InceptionFeatures(nn.Module):
    """pool3 of FID's InceptionV3: uint8 images (B,3,H,W) of any size -> features (B,2048), fp32. Frozen, in eval mode.

    Args:
        network: torch-fidelity's extractor of the feature "2048"; it resizes to 299 px as TensorFlow 1 did.
        standard: whether the weights are the published ones; with others FIDs are not comparable with published ones.
    """

    width = 2048

    def __init__(self, network: nn.Module, standard: bool) -> None:
        super().__init__()
        self.network, self.standard = network.requires_grad_(False).eval(), standard

    @torch.no_grad()
    def forward(self, image_B3HW: Tensor) -> Tensor:
        if image_B3HW.dtype != torch.uint8:
            raise ValueError(f"Inception features need uint8 images (see to_uint8), got {image_B3HW.dtype}")
        with _without_tf32():
            return self.network(image_B3HW)[0]

    def activations(self, image_B3HW: Tensor) -> Activations:
        """pool3 and the spatial features of uint8 images (B,3,H,W), both fp32, from one pass."""
        seen: list[Tensor] = []
        layer = self.network.get_submodule(SPATIAL_LAYER)
        handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            pool = self(image_B3HW)
        finally:
            handle.remove()
        return Activations(pool, seen[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

    @torch.no_grad()
    def class_logits(self, pool_BD: Tensor) -> Tensor:
        """pool3 (B,2048) -> logits of the 1008 classes without their bias, which ADM's Inception Score leaves out."""
        weight = self.network.get_parameter("fc.weight")
        return pool_BD.to(weight.device) @ weight.T

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stays in eval mode: batch statistics would make the features depend on the batch."""
        return super().train(False)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disables TF32 convolutions on CUDA, which would change FIDs visibly."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def load_inception(weights: str, device: torch.device | str = "cpu") -> InceptionFeatures:
    """FID's Inception from a local file; nothing is ever downloaded.

    Args:
        weights: torch-fidelity's or pytorch-fid's file; empty looks for either in torch.hub's folder.

    Raises:
        UsageError: the file is missing, or is not FID's Inception.
    """
    path = find_weights(weights, *INCEPTION_FILES)
    if path is None:
        where = f"but {weights} is not a file" if weights else "which is not in torch.hub's folder"
        raise UsageError(f"FID needs Inception's {INCEPTION_FILES[0]}, {where}; {HOW_TO_GET}.")
    # The extractor would unpickle the file; give it tensors that have been read safely instead.
    plain = io.BytesIO()
    torch.save(read_state_dict(path, HOW_TO_GET), plain)
    plain.seek(0)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=plain)
    except RuntimeError:
        raise UsageError(f"{path} is not FID's Inception network; {HOW_TO_GET}.") from None
    return InceptionFeatures(network, sha256(path).startswith(INCEPTION_SHA256)).to(device)
