"""The networks and batches that cases are built of: the plan's geometry, random weights, random tokens and images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from patches import Focus, Upstream
from patches.protocols import VAR, FocusedVQVAE, as_module
from refocus_ext.distill.teacher.cost import teacher_overhead
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.interface import TeacherOverhead
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.engine.devices import DeviceKind, autocast, kind_of
from refocus_ext.engine.distributed import World
from refocus_ext.evidence.bench.gpu_report.plan import Geometry
from refocus_ext.evidence.bench.gpu_report.turns import Part, in_a_line
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import build_alias
from refocus_ext.tokenizer.stage_one import StageOne
from refocus_ext.tokens.cache import TokenSample
from refocus_ext.tokens.tokenize import prepare
from refocus_ext.tokens.trained_tokenizer import Tokenizer

CLASSES = 1000


@dataclass(frozen=True)
class Comparison:
    """A built case: its parts, and what the report says below their table.

    Args:
        compared: whether the parts' times are to be compared with the first one's.
        host: whether the parts run on the CPU, whatever the report's device.
    """

    title: str
    parts: list[Part]
    notes: tuple[str, ...] = ()
    compared: bool = True
    host: bool = False


class NoData:
    """A data set that is never read."""

    known_broken: set[int] = set()  # noqa: RUF012
    broken_limit = 1
    images: Any = SimpleNamespace(classes=("random",))

    def __len__(self) -> int:
        return CLASSES

    def __getitem__(self, key: Any, /) -> Any:
        raise AssertionError("the bench gives its own batches")


@dataclass(frozen=True)
class Bench:
    """Builds on one device, at one geometry."""

    upstream: Upstream
    device: torch.device
    geometry: Geometry

    @property
    def kind(self) -> DeviceKind:
        return kind_of(self.device)

    @property
    def half(self) -> torch.dtype:
        """bf16 on CUDA, or what precision "auto" is elsewhere."""
        return self.kind.half(self.device)

    @property
    def world(self) -> World:
        return World(0, 1, self.device)

    def autocast(self) -> torch.autocast:
        return autocast(self.half, self.device)

    @functools.cached_property
    def pyramid(self) -> FocusPyramid:
        size = self.geometry
        return FocusPyramid(image_size=size.image_size, states=size.states, rho_max=size.rho_max)

    # ------------------------------------------------------------------ networks

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Inside, weights are drawn on the device: d30's two billion take a CPU half a minute."""
        with torch.device(self.device):
            yield

    def vae(self) -> Any:
        """Upstream's VQVAE, frozen and in eval mode."""
        size = self.geometry
        with self.building():
            return self.upstream.build_vae(
                vocab_size=size.codes, ch=size.ch, patch_nums=size.patch_nums, device=self.device
            )

    def var(self, vae: Any, depth: int) -> Any:
        """Upstream's VAR in train mode, unpatched."""
        with self.building():
            return self.upstream.build_var(vae, depth=depth, num_classes=CLASSES, device=self.device).train()

    def teacher(self, depth: int) -> Teacher:
        """The teacher on the student's own weights, in train mode."""
        return Teacher(self.teacher_geometry(depth)).to(self.device).train()

    def tokenizer(self) -> Tokenizer:
        """Structure and alias tokenizer as a finished stage-1 run would give them, frozen."""
        vae, size = self.vae(), self.geometry
        Focus(self.pyramid).apply(vae)
        alias = build_alias(self.alias_geometry, vae, self.device)
        trained_with = StageOne(
            preset="paper", data="", small_images="auto", crop_scale=1.125, workers=0, steps=None,
            image_size=size.image_size, patch_nums=size.patch_nums, codebook_size=size.codes, latent_channels=vae.Cvae,
            ch=size.ch, commitment=0.25,
        )  # fmt: skip
        return prepare(Tokenizer(vae, alias, self.pyramid, {}, trained_with, Path("random weights")))

    @property
    def alias_geometry(self) -> AliasGeometry:
        return AliasGeometry.of(self.pyramid)

    def teacher_geometry(self, depth: int) -> TeacherGeometry:
        theirs, nums = self.alias_geometry, self.geometry.patch_nums
        return TeacherGeometry(64 * depth, theirs.code_dim, theirs.grids, nums, self.pyramid.states_of(nums))

    def step_flops(self, depth: int, batch: int, teacher: bool) -> float:
        """Counted FLOPs of a training step; 0 if they cannot be counted, because times are worth more than MFU."""
        try:
            cost = _cost(self.upstream, depth, self.teacher_geometry(depth), self.geometry.codes)
        except Exception as error:
            print(f"the FLOPs of d{depth} cannot be counted, so its MFU is left out: {in_a_line(error)}")
            return 0.0
        return float(batch * (cost.both_flops if teacher else cost.var_flops))

    # ------------------------------------------------------------------ batches

    def images(self, batch: int) -> Tensor:
        """(B,3,H,H) in [-1,1], on the device."""
        side = self.geometry.image_size
        return torch.rand(batch, 3, side, side, device=self.device) * 2 - 1

    def labels(self, batch: int) -> Tensor:
        return torch.randint(CLASSES, (batch,), device=self.device)

    def tokens(self, batch: int) -> TokenSample:
        """A batch as the loader of a token cache gives it: on the host, pinned where that helps."""
        structure = sum(side * side for side in self.geometry.patch_nums)
        parts = (
            torch.randint(self.geometry.codes, (batch, structure)),
            torch.randint(self.alias_geometry.codes, (batch, self.alias_geometry.tokens)),
            torch.randint(CLASSES, (batch,)),
        )
        if self.kind.pins_memory:
            parts = tuple(part.pin_memory() for part in parts)  # type: ignore[assignment]
        return TokenSample(*parts, None)


@functools.cache
def _cost(upstream: Upstream, depth: int, geometry: TeacherGeometry, codes: int) -> TeacherOverhead:
    return teacher_overhead(upstream, depth, geometry, codes)


def held_bytes(*optimizers: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients and moments."""
    total = 0
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = [value for state in optimizer.state.values() for value in state.values()]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total += sum(t.numel() * t.element_size() for t in (*parameters, *moments, *grads) if isinstance(t, Tensor))
    return total


def frozen(network: VAR | FocusedVQVAE | Any) -> Any:
    """The network for sampling."""
    module: nn.Module = as_module(network)
    return module.requires_grad_(False).eval()
