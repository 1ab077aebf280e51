"""What a real forward pass keeps for its backward pass, which the counted estimates are held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def saved_tensors(own: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Inside, fills a dict with the bytes of every storage that is saved, by its address; those of the tensors `own` not."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # otherwise an address could be used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
