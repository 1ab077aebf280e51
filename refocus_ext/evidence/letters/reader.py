"""The reader: a small classifier of drawn letters. Its accuracy on samples is their legibility, its features give distances.

Shapes: B images, D features, V classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refocus_ext.errors import UsageError
from refocus_ext.images.sources.letters import LEVELS
from refocus_ext.storage.atomic import written_beside

WEIGHTS = Path(__file__).parent / "weights"
WIDTH = 96  # D
CELLS = 4  # side of the map before the hidden layer
READ_AT = {"long-words": 128}  # pixels to which a picture is resized before it is read; 64 for the others


class Reading(NamedTuple):
    """What the reader says of images."""

    feature_BD: Tensor
    logit_BV: Tensor


class Reader(nn.Module):
    """Five convolutions with GroupNorm, a 4 x 4 map of their means, a hidden layer (the features), and a linear classifier.

    Args:
        level: of the drawn pictures (`LEVELS`); it has their classes.
    """

    def __init__(self, level: str) -> None:
        super().__init__()
        self.level, self.side = level, READ_AT.get(level, 64)
        self.body = nn.Sequential(
            *_layer(3, 24, 5, 2), *_layer(24, 48, 3, 2), *_layer(48, 64, 3, 1), *_layer(64, WIDTH, 3, 2),
            *_layer(WIDTH, WIDTH, 3, 1),
        )  # fmt: skip
        self.neck = nn.Linear(WIDTH * CELLS * CELLS, WIDTH)
        self.head = nn.Linear(WIDTH, len(LEVELS[level].classes))

    def forward(self, image_B3HW: Tensor) -> Reading:
        """
        Args:
            image_B3HW: images in [-1,1], of any size.
        """
        image = image_B3HW.float()
        if image.shape[-1] != self.side:
            image = F.interpolate(image, (self.side, self.side), mode="bicubic", antialias=True)
        feature_BD = self.neck(F.adaptive_avg_pool2d(self.body(image), CELLS).flatten(1))
        feature_BD = F.silu(feature_BD)
        return Reading(feature_BD, self.head(feature_BD))


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.GroupNorm(8, outputs), nn.SiLU()]


def weights_file(level: str) -> Path:
    """The weights of a level's reader that come with the project."""
    return WEIGHTS / f"{level}.safetensors"


def load_reader(level: str, device: torch.device | str = "cpu", file: Path | None = None) -> Reader:
    """A level's reader in eval mode, with the weights that come with the project, or those of `file`.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = file or weights_file(level)
    if not path.is_file():
        raise UsageError(
            f"there is no reader {path}; train one with `bash run.sh legibility --data {level} --train FILE`."
        )
    reader = Reader(level)
    try:
        reader.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{path} does not hold the reader of {level} ({reason}); give another file, or train one."
        ) from None
    return reader.to(device).eval().requires_grad_(False)


def save_reader(reader: Reader, path: Path) -> None:
    """Writes its weights in half precision; the file is complete or not there."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        save_file({name: tensor.half().contiguous().cpu() for name, tensor in reader.state_dict().items()}, beside)
