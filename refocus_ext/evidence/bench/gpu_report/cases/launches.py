"""The case of parts made of many small kernels: the focus pyramid, the alias views and the quantizer's loop over scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.cases.cuda_graph import Graphed
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.optics.pyramid import alias_views

NOTE = "A CUDA graph launches a part's kernels together; torch.compile of these parts is not measured."
PYRAMID, ALIAS, QUANTIZER = "focus pyramid", "alias views", "quantizer's scales"


def small(bench: Bench, batch: int) -> Comparison:
    """Each as it runs, and on CUDA as a graph, which shows how much of its time is launching."""
    vae, x, pyramid = bench.tokenizer().vae, bench.images(batch), bench.pyramid
    with torch.no_grad():
        T_K = vae.encode_targets(x)
    functions: dict[str, Callable[[], Any]] = {
        PYRAMID: lambda: pyramid.structure_views(x, training=True),
        ALIAS: lambda: alias_views(pyramid, x),
        QUANTIZER: lambda: vae.quantize.f_to_idxBl_or_fhat(T_K, to_fhat=False),
    }
    parts = []
    for name, function in functions.items():
        parts.append(Part(name, without_gradients(function), images=batch))
        missing = "" if bench.device.type == "cuda" else "CUDA alone has graphs"
        parts.append(Part(f"{name}, CUDA graph", Graphed(function), images=batch, missing=missing))
    return Comparison(f"Small kernels, batch {batch}", parts, (NOTE,), compared=False)


def without_gradients(function: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return function()

    return run
