"""FLOPs and memory of a pass before it runs, on any type of device: the pass runs on fake tensors, which have shapes and no values.

The device need not be there, and autocast follows its rules: CUDA's computes normalizations in fp32, a CPU's does not.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

BATCH = 997  # images of a counted pass: a prime, so that a tensor with one entry per image has a multiple of it
WORKING = 3  # of the largest kept tensors a backward pass holds besides: two gradients and a temporary
CPU = torch.device("cpu")


@dataclass(frozen=True)
class PassCost:
    """One pass.

    Args:
        flops: of the forward pass of one image; a multiply-add is two.
        saved_bytes: kept for the backward pass, per image.
        fixed_bytes: kept for the backward pass for any number of images: weights cast by autocast.
        largest_bytes: of the largest kept tensor, per image.
    """

    flops: int = 0
    saved_bytes: int = 0
    fixed_bytes: int = 0
    largest_bytes: int = 0

    def __add__(self, other: PassCost) -> PassCost:
        """Both, one after the other."""
        return PassCost(
            self.flops + other.flops,
            self.saved_bytes + other.saved_bytes,
            self.fixed_bytes + other.fixed_bytes,
            max(self.largest_bytes, other.largest_bytes),
        )

    def __mul__(self, times: int) -> PassCost:
        return PassCost(times * self.flops, times * self.saved_bytes, times * self.fixed_bytes, self.largest_bytes)

    def __sub__(self, part: PassCost) -> PassCost:
        return self + part * -1

    @property
    def working_bytes(self) -> int:
        """What its backward pass holds per image besides the kept tensors."""
        return WORKING * self.largest_bytes


class Input(NamedTuple):
    """An input of a counted pass: the shape of one image's part, and whether a gradient reaches it."""

    shape: tuple[int, ...]
    grad: bool = False
    dtype: torch.dtype = torch.float32


def pass_cost(
    module: nn.Module,
    *inputs: Input,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    call: Callable[..., Any] | None = None,
) -> PassCost:
    """Cost of `module(*inputs)`; nothing is computed, and no memory is allocated on any device.

    A tensor that several operations save is counted once.

    Args:
        module: on any device, "meta" too; whether its weights have gradients counts.
        device: on which the pass would run; it need not be there.
        dtype: of autocast; float32 is none.
        channels_last: memory layout of the weights.
        call: in place of `module(...)`; called with the module and the inputs.
    """
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, 0)  # fake tensors without a number are not on one device
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # autocast's, where the device is not there
        args = [torch.empty(BATCH, *i.shape, dtype=i.dtype, device=device).requires_grad_(i.grad) for i in inputs]
        with _outlined(module, device, channels_last) as weights:
            kept = _Kept(weights)
            with _autocast(dtype, device), _Attention(device), counter, kept.counted():
                (call or module)(*([module, *args] if call else args))
    per_image = [size // BATCH for size in kept.sizes() if size % BATCH == 0]
    return PassCost(
        flops=counter.get_total_flops() // BATCH,
        saved_bytes=sum(per_image),
        fixed_bytes=sum(size for size in kept.sizes() if size % BATCH),
        largest_bytes=max(per_image, default=0),
    )


@contextlib.contextmanager
def _outlined(module: nn.Module, device: torch.device, channels_last: bool) -> Iterator[list[Tensor]]:
    """Inside, the module's weights and buffers are fake tensors on the device, which are yielded.

    `torch.func.functional_call` would leave fake ones behind in a module that is registered twice, as LPIPS' heads are.
    """
    real = [(table, name) for part in module.modules() for table in (part._parameters, part._buffers) for name in table]
    before = [(table, name, table[name]) for table, name in real]
    fakes = {id(tensor): _outline(tensor, device, channels_last) for _, _, tensor in before if tensor is not None}
    try:
        for table, name, tensor in before:
            table[name] = None if tensor is None else fakes[id(tensor)]  # type: ignore[assignment]
        yield list(fakes.values())
    finally:
        for table, name, tensor in before:
            table[name] = tensor  # type: ignore[assignment]


def _outline(tensor: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    """A fake tensor of the same shape on the device."""
    layout = torch.channels_last if channels_last and tensor.ndim == 4 else torch.contiguous_format
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=layout)
    return fake.requires_grad_(tensor.requires_grad)


class _Kept:
    """The storages that a pass keeps for its backward pass, without those of its weights."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._own = {weight.untyped_storage()._cdata for weight in weights}
        self._bytes: dict[int, int] = {}
        self._alive: list[Tensor] = []  # otherwise the address of a freed storage could be used again

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._bytes[storage._cdata] = storage.nbytes()
        self._alive.append(tensor)
        return tensor

    def sizes(self) -> list[int]:
        return list(self._bytes.values())


@contextlib.contextmanager
def _autocast(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """`torch.autocast`, which switches itself off where the device is not there."""
    kind = device.type
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, dtype != torch.float32)
    torch.set_autocast_dtype(kind, dtype if dtype != torch.float32 else before[1])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


class _Attention(TorchFunctionMode):
    """On CUDA attention is the memory-efficient kernel, which takes any mask: without a GPU PyTorch would choose the one that
    keeps every attention weight. The flash kernel keeps no more."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.fused = device.type == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.fused and func is F.scaled_dot_product_attention:
            return _efficient_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as autocast does for F.scaled_dot_product_attention
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    result: Tensor = kernel(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    return result
