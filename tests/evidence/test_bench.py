"""The bench command: what it measures and writes; the times themselves are never asserted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WITHOUT_SUBMODULE

from patches import Upstream, load_upstream, submodule_present
from patches.upstream_trainer import upstream_train_step
from refocus_ext.commands import main
from refocus_ext.distill.objective import DistillObjective, DistillWeights, TokenEmbedding
from refocus_ext.engine.memory.pass_cost import PassCost
from refocus_ext.engine.optimization import gradient_norm
from refocus_ext.evidence.bench import clock, command, startup, tokenizer
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage import results

TINY = "--image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --ch 32 --codebook-size 64 --repeats 1".split()


SECONDS = {
    "pyramid": 0.5, "alias_views": 0.25, "encoder": 2.0, "vanilla_tokens": 2.5, "focus_tokens": 5.0, "quantizer": 1.0,
}  # fmt: skip


def test_bench_writes_ratios_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part runs; of the times that a clock would give, the ratios are the ones worked out by hand."""

    def timed(parts: dict[str, Callable[[], object]], *_: object) -> dict[str, float]:
        assert parts.keys() == SECONDS.keys() and all(part() is not None for part in parts.values())
        return SECONDS

    monkeypatch.setattr(tokenizer, "time_interleaved", timed)
    assert main(["bench", *TINY, "--section", "tokenizer", "--json", str(tmp_path / "bench.json")]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())["tokenizer"]
    assert report["seconds"] == SECONDS
    assert report["time"] == {  # two focus states: two encoder passes of 2 s
        "pyramid_of_encoder_passes": 0.125,
        "pyramid_of_training_step": 0.5 / 12.5,
        "alias_views_of_encoder_passes": 0.0625,
        "quantizer_of_encoder_passes": 0.25,
        "focus_tokens_over_vanilla_tokens": 2.0,
    }
    assert "2.00 times the time" in capsys.readouterr().out


def test_the_clock_gives_each_part_its_median_and_leaves_out_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = {"slow": iter([100.0, 3.0, 9.0, 4.0]), "fast": iter([100.0, 1.0, 1.0, 2.0])}
    time = 0.0

    def run(name: str) -> None:
        nonlocal time
        time += next(durations[name])

    monkeypatch.setattr(clock, "now", lambda device: time)
    parts: dict[str, Callable[[], object]] = {"slow": lambda: run("slow"), "fast": lambda: run("fast")}
    assert clock.time_interleaved(parts, 3, torch.device("cpu")) == {"slow": 4.0, "fast": 1.0}


def test_bench_samples_the_same_images_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--section", "sampling", "--depth", "2", "--json", str(tmp_path / "bench.json"))
    assert main(["bench", *TINY, *options]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())["sampling"]
    assert report["same_images"] and set(report["seconds"]) == {"upstream", "fast", "decode"}
    assert "the same images" in capsys.readouterr().out


def test_bench_steps_distillation_beside_upstream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_upstream", lambda: upstream)
    options = ("--section", "distill", "--depth", "2", "--json", str(tmp_path / "bench.json"))
    assert main(["bench", *TINY, *options]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text())["distill"]
    assert ("upstream" in report["seconds"]) == (upstream.kind == "submodule") != ("was not measured" in out)
    assert all(value > 0 for value in report["seconds"].values())
    assert [row["depth"] for row in report["overhead"]] == [12, 16, 20, 24, 30]
    assert all(row["flops"] <= 0.15 for row in report["overhead"] if row["depth"] >= 16)
    assert all(row["parameters"] <= 0.03 for row in report["overhead"])


def test_upstreams_step_is_ours_without_a_teacher() -> None:
    """On the same tokens and random numbers both trainers end in the same weights, up to the rounding of the loss."""
    if not submodule_present():
        pytest.skip(WITHOUT_SUBMODULE)
    upstream = load_upstream("submodule")
    ends = []
    for ours in (False, True):
        torch.manual_seed(0)
        vae = upstream.build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
        var = upstream.build_var(vae, depth=2, num_classes=3).train()
        optimizer = torch.optim.AdamW(var.parameters(), lr=1e-2)
        label_B, idx_BL = torch.tensor([0, 2, 1]), torch.randint(64, (3, 5))
        theirs = upstream_train_step(vae, var, optimizer, label_B, idx_BL)
        objective, embed = DistillObjective(var, None, DistillWeights()), TokenEmbedding(vae, None)
        for step in range(3):
            torch.manual_seed(step)
            if not ours:
                theirs()
                continue
            objective(label_B, embed.structure(idx_BL), idx_BL, [])[0].backward()
            gradient_norm(var, 2.0)
            optimizer.step()
            optimizer.zero_grad()
        ends.append(var.state_dict())
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=2e-3) for key in ends[0])
    moved = (ends[0]["head.weight"] - ends[1]["head.weight"]).abs().mean()
    assert moved < 1e-4


def test_upstreams_step_tokenizes_the_images_it_is_given() -> None:
    """The same step as on the tokens of these images."""
    if not submodule_present():
        pytest.skip(WITHOUT_SUBMODULE)
    upstream, ends = load_upstream("submodule"), []
    for given in ("images", "tokens"):
        torch.manual_seed(0)
        vae = upstream.build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
        var = upstream.build_var(vae, depth=2, num_classes=3).train()
        label_B, x = torch.tensor([0, 2]), torch.rand(2, 3, 32, 32) * 2 - 1
        tokens: dict[str, Any] = (
            {"images_B3HW": x} if given == "images" else {"idx_BL": torch.cat(vae.img_to_idxBl(x), dim=1)}
        )
        step = upstream_train_step(vae, var, torch.optim.AdamW(var.parameters(), lr=1e-2), label_B, **tokens)
        torch.manual_seed(1)
        step()
        ends.append(var.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    with pytest.raises(ValueError, match="either tokens or images"):
        upstream_train_step(vae, var, torch.optim.AdamW(var.parameters()), label_B)


def test_bench_refuses_a_geometry_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--image-size", "48"]) == 2
    assert "patch_nums must rise to 3" in capsys.readouterr().err


def test_pyramid_is_a_small_share_of_the_papers_flops() -> None:
    shares = tokenizer.flop_shares(FocusPyramid(), PassCost(flops=215_000_000_000, saved_bytes=0))
    assert 0 < shares["pyramid_of_encoder_passes"] < 0.02


def test_parts_take_turns_after_an_untimed_round() -> None:
    order: list[str] = []
    parts: dict[str, Callable[[], object]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = clock.time_interleaved(parts, 2, torch.device("cpu"))
    assert order == list("ababab") and set(times) == {"a", "b"}


def test_bench_starts_commands_beside_the_import_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every start runs once and works; their times are not asserted."""
    started: list[str] = []

    def once(parts: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
        for name, part in parts.items():
            part()
            started.append(name)
        return {name: 1.0 + number for number, name in enumerate(parts)}

    monkeypatch.setattr(startup, "time_interleaved", once)
    assert main(["bench", "--section", "startup", "--json", str(tmp_path / "bench.json")]) == 0
    assert started == ["import torch", "help", "tokenizer --help", "tokenizer --dry-run"]
    report = json.loads((tmp_path / "bench.json").read_text())["startup"]
    assert report["time"]["tokenizer --dry-run"] == 4 and report["time"]["import torch"] == 1
    assert "a dry run takes 3.0 s more than `import torch`" in capsys.readouterr().out


def test_json_is_looked_at_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, words in (
        (tmp_path, "is a folder; give the name of a file"),
        (tmp_path / "file" / "b.json", "cannot be a folder"),
    ):
        assert main(["bench", *TINY, "--json", str(name)]) == 2
        out, error = capsys.readouterr()
        assert words in error and not out
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["bench", *TINY, "--json", str(tmp_path / "bench.json")]) == 2
    assert "bench.json cannot be written (no permission in" in capsys.readouterr().err


def test_json_that_cannot_be_written_after_all_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save_json", full)
    monkeypatch.setattr(command, "SECTIONS", {"tokenizer": lambda *_: ({}, [])})
    assert main(["bench", *TINY, "--section", "tokenizer", "--json", str(tmp_path / "b.json")]) == 1
    assert capsys.readouterr().err.endswith("b.json could not be written (No space left on device).\n")
