"""What a GPU's defaults change in the numbers, run for real on a CPU: mixed precision, channels_last and torch.compile."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from runs import TINY, run_main

LOSSES = {"tokenizer": "train/loss", "distill": "train/ce_student"}


def losses(out: Path, stage: str) -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record[LOSSES[stage]] for record in records if LOSSES[stage] in record]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(photographs, a finished stage-1 run in fp32)."""
    from conftest import write_images

    here = tmp_path_factory.mktemp("mixed")
    for split, count in (("train", 6), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            write_images(here / "data" / split / name, count, seed=10 * number + count)
    assert tokenizer(here / "data", here / "fp32") == 0
    return here / "data", here / "fp32"


def tokenizer(data: Path, out: Path, *options: str) -> int:
    return run_main(
        "tokenizer", *TINY, "--data", str(data), "--out", str(out), "--gan", "0.1", "--ema", "0.9", *options
    )


def distill(run: Path, out: Path, *options: str) -> int:
    sizes = "--depth 2 --steps 3 --batch-size 4 --samples 0 --val-images 2 --picture-every 3 --log-every 1".split()
    return run_main("distill", "--tokenizer", str(run), "--out", str(out), *sizes, *options)


# A CPU computes gradients of fp16 convolutions a few hundred times slower than those of bf16: two steps of two images.
FEW = "--steps 2 --batch-size 2 --warm-autoencoder 1 --picture-every 2 --val-images 1"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ("--precision bf16 --channels-last on", ""),
        ("--precision fp16 --channels-last on --accumulate 2 --gan-start 0", FEW),
    ],
)
def test_stage_one_trains_as_in_fp32(tokenizers: tuple[Path, Path], tmp_path: Path, options: str, sizes: str) -> None:
    data, fp32 = tokenizers
    if sizes:
        fp32 = tmp_path / "fp32"
        assert tokenizer(data, fp32, "--gan-start", "0", *sizes.split()) == 0
    assert tokenizer(data, tmp_path / "run", *options.split(), *sizes.split()) == 0
    ours, theirs = losses(tmp_path / "run", "tokenizer"), losses(fp32, "tokenizer")
    assert len(ours) == len(theirs) == (2 if sizes else 6) and all(map(math.isfinite, ours))
    assert ours[0] == pytest.approx(theirs[0], rel=0.02), "before the first update only rounding differs"


@pytest.mark.parametrize("options", ["--precision bf16 --attention grouped", "--precision fp16 --grad-checkpoint"])
def test_stage_two_trains_as_in_fp32(tokenizers: tuple[Path, Path], tmp_path: Path, options: str) -> None:
    _, run = tokenizers
    results = []
    for name, more in (("fp32", "--precision fp32"), ("half", options)):
        assert distill(run, tmp_path / name, *more.split()) == 0
        results.append(losses(tmp_path / name, "distill"))
    assert results[0][0] == pytest.approx(results[1][0], rel=0.01) and len(results[1]) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_networks_train_as_others(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    data, fp32 = tokenizers
    assert tokenizer(data, tmp_path / "one", "--compile") == 0
    assert losses(tmp_path / "one", "tokenizer")[0] == pytest.approx(losses(fp32, "tokenizer")[0], rel=1e-3)
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        assert distill(fp32, tmp_path / name, "--teacher-blocks", "1", *more) == 0
    assert losses(tmp_path / "plain", "distill")[0] == pytest.approx(
        losses(tmp_path / "compiled", "distill")[0], rel=1e-3
    )
