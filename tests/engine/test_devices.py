"""Types of devices: what is asked of the CPU, and what another type would have to answer."""

from __future__ import annotations

import pytest
import torch

from refocus_ext.engine import devices
from refocus_ext.engine.devices import (
    Cuda,
    DeviceKind,
    autocast,
    autocast_dtype,
    kind_of,
    pick_device,
    precision_in_words,
    precision_name,
    rewound,
)
from refocus_ext.errors import UsageError

CPU = torch.device("cpu")


class Toy(DeviceKind):
    """A type that is always there, under a name that PyTorch knows and has no memory for."""

    name = "meta"

    def half(self, device: torch.device) -> torch.dtype:
        return torch.bfloat16


def test_auto_takes_the_first_type_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(devices, "KINDS", {"meta": Toy(), "cpu": DeviceKind()})
    assert pick_device("auto") == torch.device("meta") == pick_device("meta")
    assert autocast_dtype("auto", torch.device("meta")) == torch.bfloat16


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta"])
def test_an_unknown_or_missing_device_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        pick_device(name)


def test_the_cpu_needs_no_care() -> None:
    kind = kind_of(CPU)
    assert kind.of_process(3) == CPU and kind.backend == "gloo"
    kind.require(10_000)
    free = kind.free_memory(CPU)
    assert free is None or 2**20 < free < 2**50
    used = kind.memory_in_use(CPU)
    block = torch.ones(2**24)  # 64 MiB
    assert used == 0 or kind.peak_memory(CPU) - used >= 0.9 * block.numel() * 4
    kind.synchronize(CPU)


@pytest.mark.parametrize(
    ("capability", "dtype", "words"),
    [
        ((7, 5), torch.float16, "fp16 with a loss scaler (this GPU has no bf16)"),
        ((8, 0), torch.bfloat16, "bf16"),
        ((9, 0), torch.bfloat16, "bf16"),
        ((12, 0), torch.bfloat16, "bf16"),
    ],
)
def test_auto_is_bf16_where_the_gpu_has_it(
    capability: tuple[int, int], dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autocast_dtype("auto", gpu) == torch.bfloat16, "the plan of a run elsewhere"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert autocast_dtype("auto", gpu) == dtype and precision_in_words("auto", gpu) == words
    assert precision_in_words("fp16", gpu) == "fp16 with a loss scaler" and precision_in_words("fp32", gpu) == "fp32"
    assert precision_name(dtype) == words.split()[0]


def test_fewer_gpus_than_processes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Cuda().require(2)
    with pytest.raises(UsageError, match="3 processes on a machine with 2 GPUs; lower NPROC"):
        Cuda().require(3)


def test_precision_and_autocast() -> None:
    names = ("auto", "fp32", "bf16", "fp16")
    assert [autocast_dtype(name, CPU) for name in names] == [
        torch.float32, torch.float32, torch.bfloat16, torch.float16,
    ]  # fmt: skip
    a = torch.ones(2, 2)
    with autocast(torch.float32, CPU):
        assert (a @ a).dtype == torch.float32
    with autocast(torch.bfloat16, CPU):
        assert (a @ a).dtype == torch.bfloat16


def test_rewound_repeats_random_numbers_and_then_goes_on() -> None:
    torch.manual_seed(0)
    state = kind_of(CPU).random_state(CPU)
    first, second = torch.rand(3), None
    with pytest.raises(KeyError), rewound(state, CPU):
        second = torch.rand(3)
        raise KeyError
    assert second is not None and torch.equal(first, second)
    following = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(following, torch.rand(3))


def test_a_cpu_with_a_unit_for_bf16_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fp32 was not chosen, and only there."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2", "amx_bf16"})
    assert "--precision bf16" in (devices.bf16_note("auto", cpu) or "")
    assert devices.bf16_note("fp32", cpu) is None and devices.bf16_note("auto", torch.device("cuda")) is None
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2", "avx512_bf16"})
    assert "AVX512_BF16; --precision bf16" in (devices.bf16_note("auto", cpu) or "")
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2", "avx512f"})
    assert devices.bf16_note("auto", cpu) is None
    assert "fp16 is slow on a CPU" in (devices.slow_fp16_note("fp16", cpu) or "")
    assert devices.slow_fp16_note("bf16", cpu) is None
    assert devices.slow_fp16_note("fp16", torch.device("cuda")) is None
