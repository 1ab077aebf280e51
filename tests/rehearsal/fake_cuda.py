"""CUDA without a GPU: tensors with a device, a shape and a dtype, but without values.

Inside `fake_cuda` the project's code runs as on a GPU, under CUDA's autocast rules. What fails: tensors on two devices in one
operation, reading a value (`item`, `tolist`, `if tensor`), shapes that depend on values (`nonzero`), and copies between host and
device that make the host wait. What cannot be rehearsed: speed, numbers, kernels' own limits, streams, NCCL, pinned memory.

PyTorch's autograd engine asks for a real GPU, so `backward` here walks the graph in Python, node by node.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from refocus_ext.engine.devices import KINDS, Cuda
from refocus_ext.engine.distributed import World

DEVICE = torch.device("cuda:0")
WORLD = World(0, 1, DEVICE)
FREE = 80 * 2**30  # bytes


class HostWaited(AssertionError):
    """The host waited for the device."""


class CountWaits(TorchDispatchMode):
    """Raises where a copy between host and device makes the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket
        if name is torch.ops.aten._to_copy and isinstance(out, Tensor) and out.device.type != args[0].device.type:
            self._refuse(args[0], out, kwargs.get("non_blocking", False))
        if name is torch.ops.aten.copy_ and args[0].device.type != args[1].device.type:
            self._refuse(args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return out

    def _refuse(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if not non_blocking:
            raise HostWaited(f"a copy of {tuple(source.shape)} from {source.device} to {target.device} that waits")


class FakeCuda(Cuda):
    """Cuda as far as it can be answered without one."""

    def available(self) -> bool:
        return True

    def half(self, device: torch.device) -> torch.dtype:
        return torch.bfloat16

    def free_memory(self, device: torch.device) -> int | None:
        return FREE

    def synchronize(self, device: torch.device) -> None:
        raise HostWaited("the device was synchronized")

    def memory_in_use(self, device: torch.device) -> int:
        return 0

    def peak_memory(self, device: torch.device) -> int:
        return 0

    def random_state(self, device: torch.device) -> list[Tensor]:
        return []

    def set_random_state(self, state: list[Tensor], device: torch.device) -> None:
        pass

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        def wait() -> Tensor:
            raise HostWaited("a step's numbers were read at once")

        return wait


@contextlib.contextmanager
def fake_cuda(waits: bool = False) -> Iterator[None]:
    """
    Args:
        waits: allow copies that make the host wait, for code outside of steps.
    """
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.dict(KINDS, {"cuda": FakeCuda()}))
        enter(mock.patch.object(nn.Module, "_apply", _apply))
        enter(mock.patch.object(torch, "autocast", _Autocast))
        enter(mock.patch.object(torch.amp, "autocast", _Autocast))  # torch.utils.checkpoint's
        enter(mock.patch.object(Tensor, "backward", _tensor_backward))
        enter(mock.patch.object(torch.autograd, "grad", _grad))
        enter(mock.patch.object(torch.amp, "GradScaler", _scaler))
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        if not waits:
            enter(CountWaits())
        yield


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` by new parameters: fake ones cannot be changed in place."""
    made: dict[int, nn.Parameter] = {}
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    moved = fn(parameter.detach())
                    made[id(parameter)] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return self


class _Autocast(contextlib.ContextDecorator):
    """`torch.autocast`, which switches itself off where there is no GPU."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> None:
        self.device, self.dtype, self.enabled = device_type, dtype or torch.bfloat16, enabled

    def __enter__(self) -> None:
        self.before = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        torch.set_autocast_enabled(self.device, self.enabled)
        torch.set_autocast_dtype(self.device, self.dtype)
        torch.autocast_increment_nesting()

    def __exit__(self, *_: object) -> None:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(self.device, self.before[0])
        torch.set_autocast_dtype(self.device, self.before[1])


_REAL_SCALER = torch.amp.GradScaler


def _scaler(device: str = "cuda", enabled: bool = True, **options: Any) -> Any:
    """A loss scaler that stays on."""
    with mock.patch("torch.cuda.is_available", lambda: True):
        return _REAL_SCALER(device, enabled=enabled, **options)


# ------------------------------------------------------------------------------------------------ backward


def _tensor_backward(self: Tensor, gradient: Tensor | None = None, **_: Any) -> None:
    for variable, grad in _walk([self], [gradient]).values():
        with torch.no_grad():
            variable.grad = grad if variable.grad is None else variable.grad + grad


def _grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **_: Any) -> tuple[Tensor | None, ...]:
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    found = _walk(roots, grad_outputs or [None] * len(roots))
    return tuple(found[id(one)][1] if id(one) in found else None for one in wanted)


_numbers = itertools.count(2**40)


def _walk(roots: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> dict[int, tuple[Tensor, Tensor]]:
    """Gradients of all leaves, by their ids. `torch.utils.checkpoint` computes a block again once for each walk, not for each
    tensor that it kept."""
    number = next(_numbers)
    with mock.patch.object(torch._C, "_current_graph_task_id", lambda: number):
        return _walked(roots, gradients)


def _walked(roots: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> dict[int, tuple[Tensor, Tensor]]:
    pending: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    nodes = []
    for root, gradient in zip(roots, gradients, strict=True):
        node = root.grad_fn
        assert node is not None
        _add(pending[node], root.output_nr, torch.ones_like(root) if gradient is None else gradient)
        nodes.append(node)
    leaves: dict[int, tuple[Tensor, Tensor]] = {}
    for node in _in_order(nodes):
        incoming = pending.pop(node, None)
        if incoming is None:
            continue
        if hasattr(node, "variable"):
            leaf = node.variable
            leaves[id(leaf)] = (leaf, incoming[0].sum_to_size(leaf.shape).to(leaf.dtype))
            continue
        with torch.no_grad():
            results = _call(node, incoming)
        for (following, number), result in zip(node.next_functions, results, strict=False):
            if following is not None and result is not None:
                _add(pending[following], number, result)
    return leaves


def _call(node: Any, incoming: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    arguments = [_fitted(incoming.get(number), metadata) for number, metadata in enumerate(node._input_metadata)]
    apply = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
    results = apply(*arguments)
    return results if isinstance(results, tuple) else (results,)


def _fitted(gradient: Tensor | None, metadata: Any) -> Tensor | None:
    """In the shape and dtype of the forward result, as the engine makes it."""
    if gradient is None:
        return None
    assert gradient.device == metadata.device, f"a gradient on {gradient.device} for a tensor on {metadata.device}"
    return gradient.sum_to_size(tuple(metadata.shape)).to(metadata.dtype)


def _add(slots: dict[int, Tensor], number: int, gradient: Tensor) -> None:
    with torch.no_grad():
        slots[number] = slots[number] + gradient if number in slots else gradient


def _in_order(roots: Sequence[Any]) -> list[Any]:
    """The graph's nodes, each before those it leads to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]
