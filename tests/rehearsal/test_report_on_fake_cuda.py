"""The cases of `bench --gpu-report` on fake CUDA tensors: no tensor is on the wrong device.

Not rehearsed: DistributedDataParallel, CUDA graphs, torch.compile, and the times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, fake_cuda
from test_rehearsal import DefaultGenerator

from patches import load_upstream
from refocus_ext.evidence.bench.gpu_report.bench import Bench
from refocus_ext.evidence.bench.gpu_report.builders import BUILDERS
from refocus_ext.evidence.bench.gpu_report.cases import tokenizer_step
from refocus_ext.evidence.bench.gpu_report.plan import REHEARSAL
from refocus_ext.optics import psf

CPU = torch.device("cpu")
KINDS = ("step", "attention", "checkpointing", "stage 1", "tokens", "sampling", "small launches", "slices", "optimizer")


@dataclass(frozen=True)
class FakeBench(Bench):
    """Builds networks on the CPU and moves them: constructors read values, which fake tensors do not have."""

    made: Any = None

    def vae(self) -> Any:
        return self.made["vae"].pop().to(DEVICE)

    def var(self, vae: Any, depth: int) -> Any:
        var = self.made["var"].pop().to(DEVICE)
        var.vae_proxy, var.vae_quant_proxy = (vae,), (vae.quantize,)
        return var

    def teacher(self, depth: int) -> Any:
        return self.made["teacher"].to(DEVICE).train()

    def step_flops(self, depth: int, batch: int, teacher: bool) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def _no_fake_tensor_is_cached() -> Iterator[None]:
    psf._cached_otf.cache_clear()
    yield
    psf._cached_otf.cache_clear()
    torch.clear_autocast_cache()


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_runs_on_one_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in REHEARSAL.cases if case.kind == kind)
    plain = Bench(load_upstream(), CPU, REHEARSAL.geometry)
    depth = case.sizes.get("depth", 2)
    made: dict[str, Any] = {"vae": [plain.vae() for _ in range(3)], "var": [plain.var(plain.vae(), depth)]}
    made["teacher"] = plain.teacher(depth)
    monkeypatch.setattr(FakeCuda, "pins_memory", False)
    if kind == "stage 1":
        options = tokenizer_step.options_of(plain, 2)
        trained = [tokenizer_step.build_vae(plain.upstream, options, plain.pyramid, CPU) for _ in range(2)]
        lpips = tokenizer_step.untrained_lpips()
        monkeypatch.setattr(tokenizer_step, "build_vae", lambda *_: trained.pop().to(DEVICE))
        monkeypatch.setattr(tokenizer_step, "untrained_lpips", lambda device: lpips.to(device))
        monkeypatch.setattr(tokenizer_step, "estimate", lambda *_: "")
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it reads its values
    monkeypatch.setattr(torch, "equal", lambda *_: True)  # so does this
    with fake_cuda(waits=True), mock.patch.object(torch, "Generator", DefaultGenerator):
        bench = FakeBench(load_upstream(), DEVICE, REHEARSAL.geometry, made)
        parts = BUILDERS[kind](bench, **case.sizes).parts  # type: ignore[union-attr]
        ran = [part for part in parts if "CUDA graph" not in part.name and not part.missing]
        assert ran
        for part in ran:
            with part.ready():
                part.run()
            assert part.holds() >= 0
