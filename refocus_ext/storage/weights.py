"""Weight files: found, read with their checksum, loaded strictly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from refocus_ext.errors import UsageError


def state_bytes(module: nn.Module) -> int:
    """Size of its weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


# ------------------------------------------------------------------------------------------------ any network's weights


def refuse_folder(path: Path) -> None:
    """Raises UsageError if the path of a weights file is a folder."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file of weights; remove it and put the file in its place.")


def find_weights(given: str, *names: str) -> Path | None:
    """The file `given`, or without one the first of `names` in torch.hub's folder; None if it does not exist."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    candidates = [Path(given)] if given else [folder / name for name in names]
    return next((path for path in candidates if path.is_file()), None)


def read_state_dict(path: Path, advice: str) -> dict[str, Tensor]:
    """A plain state dict from a file, on the CPU; nothing but tensors is ever unpickled.

    Raises:
        UsageError: it is something else or damaged; `advice` is the clause of the message that says what to do.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or foreign file can raise almost any exception
        state = None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} is not a file of network weights, or is damaged; {advice}.")
    return state


def load_strictly(network: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """`network.load_state_dict(state, strict=True)`.

    Raises:
        UsageError: the tensors do not fit; the message is `complaint`, with {reason} replaced by the mismatch.
    """
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise UsageError(complaint.replace("{reason}", reason)) from None
