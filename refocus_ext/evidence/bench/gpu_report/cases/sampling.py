"""Cases of sampling in half precision: upstream's sampler, fast sampling, what `sample` runs; compiled, and as a CUDA graph.

The weights are random, which does not change the work. Decoding by the VQVAE is included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from patches import FastSampling, patched
from patches.model_parts import compile_for_sampling
from patches.sampling import Guidance, Noise, drop_kv_caches, sample
from refocus_ext.engine.devices import uncompiled
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison, frozen
from refocus_ext.evidence.bench.gpu_report.cases.cuda_graph import Graphed
from refocus_ext.evidence.bench.gpu_report.cases.student_step import SETTLE
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.sampling.sampler import FOR_FID, image_seeds

STOCK, FAST, OURS = "upstream's sampler", "upstream's sampler, fast sampling", "ours, as `sample` runs it"


class SamplingBench:
    """A VAR with its VQVAE, and the ways to draw a batch of images from it."""

    def __init__(self, bench: Bench, depth: int, batch: int) -> None:
        self.bench, self.batch = bench, batch
        self.vae = bench.vae()
        self.var = frozen(bench.var(self.vae, depth))
        self.label_B = bench.labels(batch)
        self.guidance: Guidance = FOR_FID.for_codes(bench.geometry.codes)

    def upstreams(self, seed: int | None = 0) -> Tensor:
        """Upstream's own method; `seed` None draws from the default generator."""
        guidance = self.guidance
        try:
            with self.bench.autocast():
                return self.var.autoregressive_infer_cfg(
                    B=self.batch, label_B=self.label_B, g_seed=seed, cfg=guidance.cfg, top_k=guidance.top_k,
                    top_p=guidance.top_p,
                )  # fmt: skip
        finally:  # where memory ran out, upstream leaves its caches on
            drop_kv_caches(self.var)

    def ours(self) -> Tensor:
        """As `sample` draws a set: each image from a generator of its own."""
        noise = Noise(image_seeds(0, range(self.batch)), self.bench.device)
        with self.bench.autocast():
            return sample(self.var, self.label_B, noise, self.guidance)

    @contextlib.contextmanager
    def fast(self) -> Iterator[None]:
        with patched(self.var, FastSampling()):
            yield

    def part(self, name: str, run: Callable[[], Any], **more: Any) -> Part:
        return Part(name, run, images=self.batch, **more)


def title(bench: Bench, depth: int, batch: int) -> str:
    return f"d{depth}, batch {batch}, {str(bench.half).removeprefix('torch.')}"


# ------------------------------------------------------------------------------------------------ cases


def sampling(bench: Bench, depth: int, batch: int) -> Comparison:
    case = SamplingBench(bench, depth, batch)
    parts = [
        case.part(STOCK, case.upstreams),
        case.part(FAST, case.upstreams, ready=case.fast),
        case.part(OURS, case.ours, ready=case.fast),
    ]
    return Comparison(f"Sampling, {title(bench, depth, batch)}", parts)


def compiled(bench: Bench, depth: int, batch: int) -> Comparison:
    """The feed-forward networks and the decoder, as `sample --compile` does."""
    case = SamplingBench(bench, depth, batch)
    compile_for_sampling(case.var, case.vae)

    @contextlib.contextmanager
    def fast_and_eager() -> Iterator[None]:
        with case.fast(), uncompiled():
            yield

    parts = [
        case.part("ours, eager", case.ours, ready=fast_and_eager),
        case.part("ours, compiled", case.ours, ready=case.fast, settle=SETTLE),
    ]
    return Comparison(f"torch.compile, sampling, {title(bench, depth, batch)}", parts)


def graphed(bench: Bench, depth: int, batch: int) -> Comparison:
    """All ten steps and the decoding as one CUDA graph."""
    case = SamplingBench(bench, depth, batch)
    draw = lambda: case.upstreams(seed=None)  # noqa: E731
    parts = [
        case.part("fast sampling", draw, ready=case.fast),
        case.part("fast sampling, one CUDA graph", Graphed(draw), ready=case.fast),
    ]
    note = (
        "The graph draws from the default generator; it is an experiment of this report, and no command of the project."
    )
    return Comparison(f"CUDA graph, sampling, {title(bench, depth, batch)}", parts, (note,))
