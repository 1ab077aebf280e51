"""The case of DistributedDataParallel in a world of one process: what wrapping stage 2's objective costs by itself."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, distributed, nn

from patches.protocols import as_module
from refocus_ext.distill.command import network_plan
from refocus_ext.distill.networks import Networks, training_patches
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.cases.student_step import CLASSES, StepBench, all_patched, options_of
from refocus_ext.evidence.bench.gpu_report.turns import Part

WAYS: dict[str, dict[str, bool]] = {
    "DistributedDataParallel": {},
    "static_graph=True": {"static_graph": True},
    "find_unused_parameters=True": {"find_unused_parameters": True},
}


@contextlib.contextmanager
def ddp(bench: Bench, depth: int, batch: int) -> Iterator[Comparison]:
    """Forward and backward pass of stage 2's objective, without the optimizer's step."""
    case, options = StepBench(bench, depth, batch), options_of(depth, batch)
    training = case.training(options, Networks(case.var, case.teacher))
    label_B, idx_BL, alias_BT = training._tokens(case.tokens)
    x_BLC, alias_K = training.embed.structure(idx_BL), training.embed.alias(alias_BT)
    model = Wrapped(training.objective)

    def run() -> Tensor:
        for module in (as_module(case.var), case.teacher):
            module.zero_grad(set_to_none=True)
        with training.autocast():
            loss, _ = model.module(label_B, x_BLC, idx_BL, alias_K)
        loss.backward()
        return loss

    patches = training_patches(network_plan(options, CLASSES, bench.device), case.geometry.blocks, case.geometry.blocks)
    ready: Callable[[], Any] = lambda: all_patched(case.var, patches)  # noqa: E731
    with process_group(bench.kind.backend):
        parts = [Part("unwrapped", run, ready=ready, images=batch)]
        parts += [Part(name, run, ready=model.ready(bench, ready, **how), images=batch) for name, how in WAYS.items()]
        yield Comparison(
            f"One process of {bench.kind.backend}, forward and backward of d{depth} with teacher, batch {batch}", parts
        )


class Wrapped:
    """A module that is wrapped during some turns: two wrappers at once would both answer its gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.bare = self.module = module

    def ready(self, bench: Bench, around: Callable[[], Any], **how: Any) -> Callable[[], Any]:
        index = bench.device.index

        @contextlib.contextmanager
        def wrapped() -> Iterator[None]:
            with around():
                with warnings.catch_warnings():  # as in `World.parallel`
                    warnings.simplefilter("ignore", FutureWarning)
                    self.module = nn.parallel.DistributedDataParallel(
                        self.bare, device_ids=None if index is None else [index], broadcast_buffers=False, **how
                    )
                try:
                    yield
                finally:
                    self.module = self.bare

        return wrapped


@contextlib.contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Inside, this process is a group of one."""
    with tempfile.TemporaryDirectory() as folder:
        store = distributed.FileStore(str(Path(folder) / "store"), 1)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()
