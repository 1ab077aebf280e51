"""LPIPS (Zhang et al., 2018) on VGG16, as a loss and as a metric, from local files only.

The network and the trained linear heads are torchmetrics'; the ImageNet backbone comes from torchvision's own file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from refocus_ext.errors import UsageError
from refocus_ext.storage.weights import find_weights, read_state_dict

VGG16_FILE = "vgg16-397923af.pth"
VGG16_URL = f"https://download.pytorch.org/models/{VGG16_FILE}"
HOW_TO_GET = f"download {VGG16_URL} and give it with --lpips-weights FILE"


class LPIPS(nn.Module):
    """Frozen LPIPS, always in eval mode: `lpips(image, target)` gives one distance per image, 0 for equal images.

    Args:
        network: torchmetrics' LPIPS network on VGG16.

    Shape: both (B,3,H,W) in [-1,1], H and W at least 16 pixels; result (B,). Gradients reach the images only.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def forward(self, image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        return self.network(image_B3HW, target_B3HW).flatten(1).sum(1)

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode: the heads contain dropout."""
        return super().train(False)


def load_lpips(weights: str, device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with a backbone from a local file; nothing is ever downloaded.

    Args:
        weights: torchvision's VGG16 state dict (its classifier is not needed); empty looks in torch.hub's folder.

    Raises:
        UsageError: the file is missing, or is not torchvision's VGG16.
    """
    path = find_weights(weights, VGG16_FILE)
    if path is None:
        raise UsageError(f"LPIPS needs torchvision's {VGG16_FILE}, {_where(weights, VGG16_FILE)}; {HOW_TO_GET}.")
    state = read_state_dict(path, HOW_TO_GET)
    network = _untrained_network()
    try:
        _backbone(network).load_state_dict(_backbone_state(network, state), strict=True)
    except (KeyError, RuntimeError):
        raise UsageError(f"{path} is not torchvision's VGG16; {HOW_TO_GET}.") from None
    return LPIPS(network).to(device)


def untrained_lpips(device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with a random backbone, which needs no file: to count what it costs, and to time it."""
    return LPIPS(_untrained_network()).to(device)


# torchmetrics has no public LPIPS network with a custom backbone. Only these three functions use its private one;
# tests/tokenizer/test_perceptual.py compares them with torchmetrics' public function.


def _untrained_network() -> nn.Module:
    """torchmetrics' LPIPS on VGG16: trained heads, which ship in its wheel, on a random backbone."""
    from torchmetrics.functional.image.lpips import _LPIPS  # imported lazily: it takes seconds

    return _LPIPS(pretrained=True, net="vgg", pnet_rand=True)


def _backbone(network: nn.Module) -> nn.Module:
    return network.get_submodule("net")


def _backbone_state(network: nn.Module, vgg16: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `features.I.weight` under the backbone's names, `sliceN.I.weight`.

    Raises:
        KeyError: `vgg16` lacks one.
    """
    return {name: vgg16[f"features.{name.partition('.')[2]}"] for name in _backbone(network).state_dict()}


def _where(given: str, name: str) -> str:
    """Where `find_weights` found nothing, for a message."""
    return f"but {given} is not a file" if given else f"which is not in {Path(torch.hub.get_dir()) / 'checkpoints'}"
