"""The bench command: what it measures and writes; the times themselves are never asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refocus_ext import bench
from refocus_ext.__main__ import main
from refocus_ext.cost import PassCost
from refocus_ext.pyramid import FocusPyramid

TINY = "--image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --ch 32 --codebook-size 64 --repeats 1".split()


def test_bench_writes_ratios_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--json", str(tmp_path / "bench.json")]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    seconds, ratio = report["seconds"], report["time"]
    assert ratio["focus_tokens_over_vanilla_tokens"] == seconds["focus_tokens"] / seconds["vanilla_tokens"]
    assert ratio["pyramid_of_encoder_passes"] == seconds["pyramid"] / (2 * seconds["encoder"])
    assert report["sampling"]["same_images"] and set(report["sampling"]["seconds"]) == {"upstream", "fast", "decode"}
    assert "times the time" in capsys.readouterr().out


def test_bench_refuses_a_geometry_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--image-size", "48"]) == 2
    assert "patch_nums must rise to 3" in capsys.readouterr().err


def test_pyramid_is_a_small_share_of_the_papers_flops() -> None:
    shares = bench.flop_shares(FocusPyramid(), PassCost(flops=215_000_000_000, saved_bytes=0))
    assert 0 < shares["pyramid_of_encoder_passes"] < 0.02


def test_parts_take_turns_after_an_untimed_round() -> None:
    order: list[str] = []
    parts: dict[str, Callable[[], object]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = bench.time_interleaved(parts, 2, torch.device("cpu"))
    assert order == list("ababab") and set(times) == {"a", "b"}
