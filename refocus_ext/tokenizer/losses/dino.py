"""A discriminator on frozen features of DINO's ViT-S/16 (Caron et al., 2021), as in Projected GAN and StyleGAN-T (Sauer et al.,
2021, 2023): small heads on four of its blocks.

Shapes: images (B,3,H,W) in [-1,1], square, H a multiple of 16; L tokens of a feature map, C its width; logits (B, 4 L).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from refocus_ext.errors import UsageError
from refocus_ext.storage.weights import find_weights, load_strictly, read_state_dict

DINO_FILE = "dino_deitsmall16_pretrain.pth"
DINO_URL = f"https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/{DINO_FILE}"
HOW_TO_GET = f"download {DINO_URL} and give it with --disc-weights FILE"
TAPS = (2, 5, 8, 11)  # blocks whose features have a head, 0-based
PATCH = 16  # pixels per token
SIDE = 224  # pixels on which DINO was trained; larger images are cropped or resized to it
KERNEL = 9  # of the heads, in tokens
SMALLEST = 32  # pixels: the heads' circular padding needs KERNEL // 2 tokens
WIDTH, HEAD_WIDTH = 384, 64  # of ViT-S, and of an attention head in every DINO
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, images in [0,1]


class DinoDiscriminator(nn.Module):
    """Modules: `backbone`, frozen, always in eval mode and not in the state dict; `heads`, one for each of TAPS.

    Images up to 224 px are seen at their own size, with DINO's position embedding interpolated. Larger ones are cropped at
    random to 224 px or averaged down to it, each in half of the passes in train mode (one draw for the batch, from torch's
    global generator); in eval mode they are averaged.

    The spectral norms' power iteration runs in `begin_step` alone, so that no pass changes a buffer.

    Args:
        backbone: timm's VisionTransformer, from `load_dino` or `untrained_dino`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.heads = nn.ModuleList(_head(int(backbone.num_features)) for _ in TAPS)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.register_state_dict_post_hook(_leave_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)
        self.train()

    def train(self, mode: bool = True) -> DinoDiscriminator:
        """Backbone and heads stay in eval mode: see `begin_step`."""
        super().train(mode)
        self.backbone.eval()
        self.heads.eval()
        return self

    @torch.no_grad()
    def begin_step(self) -> None:
        """One power iteration of each spectral norm; called once before a step of the discriminator."""
        for layer in _normed(self.heads):
            norm: Any = layer.parametrizations
            norm.weight.train()
            layer.weight  # noqa: B018  # computing it in train mode iterates
            norm.weight.eval()

    def forward(self, image_B3HW: Tensor) -> Tensor:
        if image_B3HW.shape[-1] < SMALLEST:
            raise ValueError(f"DINO's heads need images of at least {SMALLEST} px, got {image_B3HW.shape[-1]}")
        features = self.features(image_B3HW)
        with parametrize.cached():
            with torch.autocast(device_type=image_B3HW.device.type, enabled=False):
                for layer in _normed(self.heads):
                    layer.weight  # noqa: B018  # its norm in fp32, under any autocast
            pairs = zip(self.heads, features, strict=True)
            return torch.cat([head(feature).flatten(1) for head, feature in pairs], dim=1)

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """Patch tokens plus the class token after each of TAPS, (B,C,L) each."""
        unit = (self._viewed(image_B3HW.float()) + 1) / 2
        backbone: Any = self.backbone
        taps = backbone.forward_intermediates(
            (unit - self.mean) / self.std,
            indices=list(TAPS),
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [(tokens + prefix[:, :1]).transpose(1, 2) for tokens, prefix in taps]

    def _viewed(self, image: Tensor) -> Tensor:
        room = image.shape[-1] - SIDE
        if room <= 0:
            return image
        if not self.training or torch.rand(()) < 0.5:  # drawn on the CPU: no wait for a device
            return F.interpolate(image, size=(SIDE, SIDE), mode="area")
        top, left = torch.randint(room + 1, (2,)).tolist()
        return image[..., top : top + SIDE, left : left + SIDE]


def _normed(heads: nn.Module) -> list[nn.Module]:
    return [layer for layer in heads.modules() if parametrize.is_parametrized(layer)]


def _leave_backbone(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}backbone.")]:
        del state[name]


def _keep_backbone(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    backbone: Any = module.backbone
    state.update({f"{prefix}backbone.{name}": tensor for name, tensor in backbone.state_dict().items()})


# ------------------------------------------------------------------------------------------------ heads


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BCL: Tensor) -> Tensor:
        return (self.inner(x_BCL) + x_BCL) / math.sqrt(2)


def _block(width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), nn.GroupNorm(32, width), nn.LeakyReLU(0.2))


def _head(width: int) -> nn.Sequential:
    """(B,C,L) -> (B,1,L)."""
    return nn.Sequential(_block(width, 1), _Residual(_block(width, KERNEL)), spectral_norm(nn.Conv1d(width, 1, 1)))


# ------------------------------------------------------------------------------------------------ backbone


def load_dino(weights: str, device: torch.device | str = "cpu") -> nn.Module:
    """DINO's ViT from a local file, frozen; nothing is ever downloaded.

    Args:
        weights: facebook's or timm's state dict of a DINO ViT with 12 blocks and patches of 16 px; empty looks in torch.hub's
            folder.

    Raises:
        UsageError: timm or the file is missing, or the file is not such a ViT.
    """
    path = find_weights(weights, DINO_FILE)
    if path is None:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        where = f"but {weights} is not a file" if weights else f"which is not in {place}"
        raise UsageError(f"--disc dino needs {DINO_FILE}, {where}; {HOW_TO_GET}.")
    state = read_state_dict(path, HOW_TO_GET)
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    if not width or width % HEAD_WIDTH:
        raise UsageError(f"{path} is not DINO's ViT-S/16; {HOW_TO_GET}.")
    network = untrained_dino(width)
    load_strictly(network, state, f"{path} is not DINO's ViT-S/16 ({{reason}}); {HOW_TO_GET}.")
    return network.to(device)


def untrained_dino(width: int = WIDTH) -> nn.Module:
    """The same network with random weights, which needs no file: to count what it costs, and for tests.

    Raises:
        UsageError: timm is missing.
    """
    try:
        import timm  # imported lazily: it takes seconds
    except ImportError:
        raise UsageError(
            "--disc dino needs the package timm, which is not installed here; install it (pip install timm)."
        ) from None
    sizes: dict[str, Any] = dict(embed_dim=width, num_heads=width // HEAD_WIDTH)
    model: nn.Module = timm.create_model(
        "vit_small_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True, **sizes
    )
    return model.requires_grad_(False).eval()
