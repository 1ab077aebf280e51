"""A function as a CUDA graph: its kernels are launched together, at the price of fixed shapes and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

UNCAPTURED = 3  # runs before the capture, which fill caches and choose kernels


class Graphed:
    """`function` without arguments; the first call captures it, later ones replay it into the same tensors.

    It must not wait for the device. Random numbers may come from the default generator alone.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Any = None

    def __call__(self) -> Any:
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(UNCAPTURED):
                self.function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self.result = self.function()
        self.graph = graph
