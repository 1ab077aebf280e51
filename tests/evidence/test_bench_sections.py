"""Sections of the bench: their tables from given numbers, and counts that do not depend on a clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patches import Upstream
from refocus_ext.errors import RunFailed
from refocus_ext.evidence.bench import data, distill, environment, sampling

SECONDS = {"upstream": 2.0, "student": 1.0, "distillation": 3.0}
REPORT = {"depth": 2, "batch": 4, "seconds": SECONDS, "peak_bytes": dict.fromkeys(SECONDS, 2**30)}


def test_a_step_is_compared_with_upstreams_where_there_is_one() -> None:
    head, *rows = distill.table(REPORT)
    assert "against upstream" in head and len(rows) == 3
    assert [row.split()[-3] for row in rows] == ["1.00x", "0.50x", "1.50x"]


def test_without_upstream_the_student_is_the_measure_and_the_reason_is_told() -> None:
    seconds = {name: value for name, value in SECONDS.items() if name != "upstream"}
    lines = distill.table(REPORT | {"seconds": seconds})
    assert "against student" in lines[0] and "3.00x" in lines[2] and "was not measured" in lines[-1]


def test_parts_take_turns_after_an_untimed_round() -> None:
    order: list[str] = []
    parts = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds, peaks = distill._turns(parts, 2, torch.device("cpu"))
    assert order == list("ababab") and seconds.keys() == peaks.keys() == {"a", "b"}
    assert all(value >= 0 for value in (*seconds.values(), *peaks.values()))


def test_fast_sampling_draws_the_same_images(upstream: Upstream) -> None:
    report = sampling.measure(upstream, (1, 2), 64, 1, torch.device("cpu"), images=2, depth=2)
    assert report["same_images"] and report["images"] == 2
    assert report["fast_over_upstream"] == report["seconds"]["fast"] / report["seconds"]["upstream"]
    lines = sampling.table(report)
    assert "sampling 2 images with a d2 student" in lines[0] and "the same images" in lines[1]
    assert "images differ in the last bits" in sampling.table(report | {"same_images": False})[1]


def test_loaders_read_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part loads every JPEG once; of given times the rates are worked out by hand."""
    sizes: dict[str, set[tuple[int, ...]]] = {}

    def timed(parts: dict[str, Any], *_: object) -> dict[str, float]:
        loaded = {name: part() for name, part in parts.items()}
        sizes.update({name: {tuple(sample[0].shape) for sample in samples} for name, samples in loaded.items()})
        assert len({len(samples) for samples in loaded.values()}) == 1
        folder, tar = (torch.stack([sample.image for sample in loaded[name]]) for name in ("folder", "tar"))
        assert torch.equal(folder, tar)
        return {"torchvision": 4.0, "folder": 2.0, "tar": 1.0}

    monkeypatch.setattr(data, "time_interleaved", timed)
    report = data.measure(32, 1)
    assert sizes == {name: {(3, 32, 32)} for name in ("torchvision", "folder", "tar")}
    assert report["images"] == 76 and report["per_second"] == {"torchvision": 19.0, "folder": 38.0, "tar": 76.0}
    assert report["over_torchvision"] == {"torchvision": 1.0, "folder": 2.0, "tar": 4.0}
    lines = data.table(report)
    assert "2.00x" in lines[2] and f"{74 / 38:.1f} such cores" in lines[-1]


def test_environments_differ_in_their_variables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child sees the variant's variables and none of the others; without its steps it is an error, not a rate."""
    seen: list[dict[str, str]] = []
    precisions: list[str] = []

    def run(words: list[str], env: dict[str, str], **_: Any) -> Any:
        seen.append(
            {name: env[name] for name in environment.KEEP | environment.HUGE | environment.PASSIVE if name in env}
        )
        precisions.append(words[words.index("--precision") + 1])
        text = "seconds 15.0\n" if "broken" not in str(words) else "no steps"
        return SimpleNamespace(stdout=text, stderr="why")

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(environment.subprocess, "run", run)
    for name in environment.VARIANTS:
        assert environment._rate(tmp_path / "run", name) == (environment.STEPS - environment.WARM) / 15
    assert seen == list(environment.VARIANTS.values())
    assert precisions == ["bf16" if "bf16" in name else "fp32" for name in environment.VARIANTS]
    with pytest.raises(RunFailed, match=r"the demo failed under .*: why"):
        environment._rate(tmp_path / "broken", "huge pages")


def test_environments_are_compared_with_the_systems() -> None:
    alone = {name: 2.0 + number for number, name in enumerate(environment.VARIANTS)}
    lines = environment.table({"alone": alone, "beside a busy core": dict.fromkeys(environment.BUSY, 1.0)})
    assert lines[1].split()[-2:] == ["2.00", "1.00x"] and lines[2].split()[-1] == "1.50x"
    assert all(line.endswith("1.00x") for line in lines[-3:])
