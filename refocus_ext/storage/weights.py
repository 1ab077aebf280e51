"""Weight files: found, read with their checksum, loaded strictly."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from refocus_ext.errors import UsageError
from refocus_ext.storage.reading import open_weights, refuse_folder

__all__ = ["checksum", "find_weights", "load_strictly", "read_state_dict", "refuse_folder", "state_bytes"]


def state_bytes(module: nn.Module) -> int:
    """Size of its weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def checksum(network: nn.Module) -> str:
    """sha256 of its parameters' shapes and values; their names and order, which differ between libraries, do not count."""
    each = []
    for parameter in network.parameters():
        values = parameter.detach().cpu().float().contiguous()
        each.append(hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


# ------------------------------------------------------------------------------------------------ any network's weights


def find_weights(given: str, *names: str) -> Path | None:
    """The file `given`, or without one the first of `names` in torch.hub's folder; None if it does not exist."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    candidates = [Path(given)] if given else [folder / name for name in names]
    return next((path for path in candidates if path.is_file()), None)


def read_state_dict(path: Path, advice: str) -> dict[str, Tensor]:
    """A plain state dict from a file, on the CPU and memory-mapped; nothing but tensors is ever unpickled.

    Raises:
        UsageError: it is something else or damaged; `advice` is the clause of the message that says what to do.
    """
    state: dict[str, Tensor] = {}
    with contextlib.suppress(UsageError):
        state = open_weights(path)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
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
        raise UsageError(complaint.replace("{reason}", shortened(str(error)))) from None


def shortened(mismatch: str) -> str:
    """The last line of what `load_state_dict` says, with the first of many names.

    >>> shortened('Error(s):\\n Missing key(s) in state_dict: "a.weight", "a.bias", "b.weight".')
    'Missing key(s) in state_dict: "a.weight" and 2 more'
    """
    last = mismatch.strip().splitlines()[-1].strip().rstrip(".")
    first, *others = last.split('", "')
    return f'{first}" and {len(others)} more' if others else last
