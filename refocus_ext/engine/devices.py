"""Everything that differs between device types: one class per type, found by `kind_of`.

A new type (MPS, say) is a class in this file and an entry in `KINDS`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from refocus_ext.errors import UsageError

BF16_SINCE = (8, 0)  # compute capability of the first GPUs with bf16 (Ampere)


class DeviceKind:
    """What the project needs from a device type; this class is the CPU."""

    name = "cpu"
    backend = "gloo"  # of torch.distributed
    has_tf32 = False
    pins_memory = False  # copies from pinned memory overlap with computation
    fused_optimizer = False
    channels_last = False  # whether the networks' convolutions are fastest in this layout
    attention = "dense"  # the fastest way of VAR's training pass
    views_at_once = 16  # images that a frozen tokenizer encodes together
    runs_behind = False  # the host only queues work, so that reading a value waits for all of it
    wide_sums = torch.float64  # dtype in which scalars are averaged
    swaps = True  # what does not fit into memory is slow, not impossible
    tokens_at_once = 1024  # of eq. 13; an fp32 temporary is 32 MB at 8192 codes

    def available(self) -> bool:
        return True

    def half(self, device: torch.device) -> torch.dtype:
        """The dtype of precision "auto"."""
        return torch.float32

    def require(self, processes: int) -> None:
        """Raises UsageError where this machine has fewer devices than processes that want one."""

    def of_process(self, local_rank: int) -> torch.device:
        """The device of one of several processes on a machine."""
        return torch.device(self.name)

    def free_memory(self, device: torch.device) -> int | None:
        """Free bytes for this process; None if the system does not report them."""
        available = _proc("/proc/meminfo", "MemAvailable")
        return available or None

    def synchronize(self, device: torch.device) -> None:
        """Waits until the device has finished its work."""

    @contextlib.contextmanager
    def tuned(self, tf32: bool) -> Iterator[None]:
        """Inside, the settings of a training run: the fastest kernels, and fp32 products in TF32 if that is wanted and there."""
        yield

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Starts a copy to the host; the returned function waits for it and gives it."""
        return lambda: tensor

    def memory_in_use(self, device: torch.device) -> int:
        """Bytes in use now; `peak_memory` counts from here."""
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the high-water mark to the current resident size
        return _proc("/proc/self/status", "VmRSS")

    def peak_memory(self, device: torch.device) -> int:
        """The most bytes in use since `memory_in_use`."""
        return _proc("/proc/self/status", "VmHWM")

    def free_unused(self) -> None:
        """Returns memory that no tensor uses to the device."""

    def random_state(self, device: torch.device) -> list[Tensor]:
        """State of the generators that a pass on the device draws from."""
        return [torch.get_rng_state()]

    def set_random_state(self, state: list[Tensor], device: torch.device) -> None:
        """Restores what `random_state` returned."""
        torch.set_rng_state(state[0])


class Cuda(DeviceKind):
    """NVIDIA's GPUs."""

    name = "cuda"
    backend = "nccl"
    has_tf32 = True
    pins_memory = True
    fused_optimizer = True
    # Its convolutions are fastest in it, but up to torch 2.14 GroupNorm, which stands before each of them, returns NCHW
    # (pytorch/pytorch#111824), so that both copy. `bench --gpu-report` measures both layouts.
    channels_last = False
    attention = "grouped"  # all but the first, small call can take the flash kernel
    views_at_once = 128
    runs_behind = True
    wide_sums = torch.float32
    swaps = False
    tokens_at_once = 8192  # three slices of a batch of 32 images; a temporary is 256 MB

    def available(self) -> bool:
        return torch.cuda.is_available()

    def half(self, device: torch.device) -> torch.dtype:
        """bf16 where the GPU computes in it, otherwise fp16, whose small range needs a loss scaler."""
        if not self.available():  # the plan of a run elsewhere
            return torch.bfloat16
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BF16_SINCE else torch.float16

    def require(self, processes: int) -> None:
        if processes > (there := torch.cuda.device_count()):
            raise UsageError(f"NPROC asks for {processes} processes on a machine with {there} GPUs; lower NPROC.")

    def of_process(self, local_rank: int) -> torch.device:
        device = torch.device(self.name, local_rank)
        torch.cuda.set_device(device)
        return device

    def free_memory(self, device: torch.device) -> int | None:
        return torch.cuda.mem_get_info(device)[0]

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    @contextlib.contextmanager
    def tuned(self, tf32: bool) -> Iterator[None]:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # the sizes of a run never change
        try:
            with fp32_products(tf32):
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(tensor.device))

        def wait() -> Tensor:
            arrived.synchronize()
            return host

        return wait

    def memory_in_use(self, device: torch.device) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    def peak_memory(self, device: torch.device) -> int:
        return torch.cuda.max_memory_allocated(device)

    def free_unused(self) -> None:
        torch.cuda.empty_cache()

    def random_state(self, device: torch.device) -> list[Tensor]:
        return [torch.get_rng_state(), torch.cuda.get_rng_state(device)]

    def set_random_state(self, state: list[Tensor], device: torch.device) -> None:
        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state(state[1], device)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# In the order "auto" tries them; the CPU, which always exists, is last.
KINDS = {kind.name: kind for kind in (Cuda(), DeviceKind())}


def kind_of(device: torch.device) -> DeviceKind:
    """
    Raises:
        UsageError: a type of device that this project does not know.
    """
    if device.type not in KINDS:
        raise UsageError(f"device {device} is not supported; choose one of {', '.join(KINDS)}.")
    return KINDS[device.type]


def pick_device(name: str) -> torch.device:
    """'auto' is the first available type. A type without a number is asked for and not used, which would make each of several
    processes allocate on the first GPU.

    Raises:
        UsageError: the device is not available.
    """
    if name == "auto":
        return torch.device(next(kind.name for kind in KINDS.values() if kind.available()))
    try:
        device = torch.device(name)
        if name not in KINDS or not KINDS[name].available():
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name} is not available; use cpu, or omit --device{_elsewhere(name)}.") from None
    kind_of(device)
    return device


def _elsewhere(name: str) -> str:
    return (
        ". `tokenizer` and `distill` plan for a GPU elsewhere with --dry-run --gpu-memory GIB" if "cuda" in name else ""
    )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """fp32, bf16 or fp16; 'auto' is bf16 on CUDA (fp16 on GPUs without it) and fp32 elsewhere."""
    if precision == "auto":
        return kind_of(device).half(device)
    return DTYPES[precision]


def precision_name(dtype: torch.dtype) -> str:
    """'fp32', 'bf16' or 'fp16'."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def precision_in_words(precision: str, device: torch.device) -> str:
    """For a plan: 'bf16', or 'fp16 with a loss scaler (this GPU has no bf16)'."""
    dtype = autocast_dtype(precision, device)
    why = " (this GPU has no bf16)" if precision == "auto" else ""
    return precision_name(dtype) + (f" with a loss scaler{why}" if dtype == torch.float16 else "")


# Flag of /proc/cpuinfo, its name, and what stage 1 of the demo and of letters was seen to gain.
BF16_UNITS = (("amx_bf16", "AMX", "twice"), ("avx512_bf16", "AVX512_BF16", "1.4 times"))


def bf16_note(precision: str, device: torch.device) -> str | None:
    """A sentence for a plan where a CPU trains in fp32 by default although it multiplies bf16 in hardware (with AVX-512's
    fp32 instructions alone bf16 is hardly faster)."""
    if precision == "auto" and device.type == "cpu":
        flags = cpu_flags()
        for flag, unit, gain in BF16_UNITS:
            if flag in flags:
                return f"this CPU has {unit}; --precision bf16 trains up to {gain} as fast"
    return None


def slow_fp16_note(precision: str, device: torch.device) -> str | None:
    """A sentence for the plan of a network of convolutions: PyTorch has no fast fp16 kernels for their gradients on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        return "fp16 is slow on a CPU: gradients of convolutions took hundreds of times as long as in bf16; give --precision bf16"
    return None


def cpu_flags() -> set[str]:
    """What Linux says that the processor can do; empty elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Mixed precision in `dtype`; for float32 it changes nothing."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Inside, what `torch.compile` has compiled runs as it was written: for the few calls that would each be compiled once more."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def fp32_products(tf32: bool) -> Iterator[None]:
    """Inside, products and convolutions of fp32 tensors use TF32 or full fp32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def loss_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of the loss against fp16's small range; for another dtype it changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


@contextlib.contextmanager
def rewound(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Inside, random numbers restart from `state` (see `DeviceKind.random_state`); afterwards they go on as if unused."""
    kind = kind_of(device)
    now = kind.random_state(device)
    kind.set_random_state(state, device)
    try:
        yield
    finally:
        kind.set_random_state(now, device)


def _proc(file: str, name: str) -> int:
    """Bytes in a line of a Linux /proc file; 0 if it is missing."""
    try:
        with open(file) as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
