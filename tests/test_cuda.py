"""What only a GPU can show; skipped where there is none. `bash run.sh test -m cuda` runs these alone.

They are the counterpart of `tests/rehearsal`, which runs the same paths without a GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WITHOUT_SUBMODULE, small_vae, write_images
from runs import TINY, TRAINED_WITH, run_main
from students import lively_var

from patches import FastSampling, Focus, load_upstream, patched, submodule_present
from patches.sampling import drop_kv_caches
from refocus_ext.engine.devices import fp32_products, kind_of
from refocus_ext.evidence.bench.gpu_report.bench import Bench
from refocus_ext.evidence.bench.gpu_report.cases import student_step, tokenizer_step
from refocus_ext.evidence.bench.gpu_report.plan import REHEARSAL
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokenizer.losses.perceptual import untrained_lpips
from refocus_ext.tokens.tokenize import prepare, tokenize
from refocus_ext.tokens.trained_tokenizer import Tokenizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")
DISTILL = (
    "--depth 3 --teacher-blocks 2 --steps 4 --batch-size 4 --samples 2 --val-images 2 --picture-every 4 --log-every 1 "
    "--save-every 1 --keep 4 --device cuda"
).split()


def losses(run: Path, name: str) -> dict[int, float]:
    """By step; of a step that was taken twice the last."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record[name] for record in records if name in record}


def train(data: Path, out: Path, *options: str) -> int:
    return run_main(
        "tokenizer", *TINY, "--data", str(data), "--out", str(out), "--gan", "0.1", "--ema", "0.9", *options
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            write_images(folder / split / name, count, seed=10 * number + count)
    return folder


@pytest.fixture(scope="module")
def tokenizer(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 run in bf16."""
    out = tmp_path_factory.mktemp("runs") / "bf16"
    assert train(images, out, "--device", "cuda", "--precision", "bf16") == 0
    return out


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_one_trains_as_on_a_cpu(images: Path, tokenizer: Path, tmp_path: Path, precision: str) -> None:
    assert train(images, tmp_path / "cpu", "--device", "cpu") == 0
    run = tokenizer
    if precision == "fp16":
        run = tmp_path / "fp16"
        assert train(images, run, "--device", "cuda", "--precision", "fp16", "--accumulate", "2") == 0
    ours, theirs = losses(run, "train/loss"), losses(tmp_path / "cpu", "train/loss")
    assert len(ours) == 6 and all(map(math.isfinite, ours.values()))
    assert ours[1] == pytest.approx(theirs[1], rel=0.05), "before the first update only noise and rounding differ"


@pytest.mark.parametrize("options", ["--precision bf16", "--precision fp16 --grad-checkpoint --attention per-scale"])
def test_stage_two_trains(tokenizer: Path, tmp_path: Path, options: str) -> None:
    words = ("--tokenizer", str(tokenizer), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "tokens"))
    assert run_main("distill", *words, *DISTILL, *options.split()) == 0
    values = losses(tmp_path / "run", "train/ce_student")
    assert len(values) == 4 and values[1] == pytest.approx(math.log(64), rel=0.1), "an untrained student guesses"


def test_a_killed_run_resumes(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("distill", "--tokenizer", str(tokenizer), *DISTILL, "--cache", str(tmp_path / "tokens"))
    for name in ("whole", "parts"):
        assert run_main(*words, "--out", str(tmp_path / name)) == 0
    for checkpoint in sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[2:]:
        checkpoint.unlink()  # as if killed after the second step
    capsys.readouterr()
    assert run_main(*words, "--out", str(tmp_path / "parts")) == 0
    assert "resuming after step 2" in capsys.readouterr().out
    whole, parts = (losses(tmp_path / name, "train/loss") for name in ("whole", "parts"))
    assert parts[3] == pytest.approx(whole[3], rel=1e-3), (
        "weights, moments and random numbers are those of the checkpoint"
    )


@pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)
def test_a_student_trained_on_the_gpu_is_vanilla_var(tokenizer: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert run_main("distill", "--tokenizer", str(tokenizer), "--out", run, *DISTILL, "--cache", "off") == 0
    assert run_main("export", "--run", run, "--to", str(tmp_path / "export")) == 0
    assert run_main("verify", str(tmp_path / "export")) == 0


def test_the_report_measures_every_case(tmp_path: Path) -> None:
    """At tiny sizes, without what is compiled, which takes minutes."""
    out = tmp_path / "numbers.json"
    files = ("--out", str(tmp_path / "page.md"), "--json", str(out))
    words = ("bench", "--gpu-report", "--tiny", "--minutes", "0.95", "--device", "cuda")
    assert run_main(*words, *files) == 0
    report = json.loads(out.read_text())
    failed = {
        (case["case"], row["name"]): row["failed"]
        for case in report["cases"]
        for row in case["rows"]
        if "failed" in row
    }
    upstreams = ("upstream, as it runs", "upstream, tokens given")  # their trainer may not be there
    assert not {where: why for where, why in failed.items() if where[1] not in upstreams}
    assert (tmp_path / "page.md").read_text().startswith("**A rehearsal on ")


# ------------------------------------------------------------------------------------------------ parts


def lively_tokenizer() -> Tokenizer:
    pyramid, vae = FocusPyramid(image_size=64, states=3, rho_max=6.0), small_vae(load_upstream(), device=CUDA)
    Focus(pyramid).apply(vae)
    torch.manual_seed(0)
    alias = AliasTokenizer(AliasGeometry.of(pyramid, stride=8, codes=16, code_dim=4, width=8, codebook="own")).to(CUDA)
    return prepare(Tokenizer(vae, alias, pyramid, {}, TRAINED_WITH, Path("none")))


def test_tokens_in_tf32_are_those_in_fp32() -> None:
    coarse = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)
    tokenizer = lively_tokenizer()
    for ours, theirs in zip(tokenize(tokenizer, x, "tf32"), tokenize(tokenizer, x, "fp32"), strict=True):
        assert len(theirs.unique()) > 4 and (ours == theirs).float().mean() >= 0.99


def test_fast_sampling_draws_stock_images() -> None:
    upstream = load_upstream()
    vae = small_vae(upstream, device=CUDA).requires_grad_(False).eval()
    var = lively_var(upstream, vae=vae, device=CUDA)
    draw = lambda: var.autoregressive_infer_cfg(  # noqa: E731
        B=8, label_B=torch.arange(8, device=CUDA) % 5, g_seed=0, cfg=1.5, top_k=32, top_p=0.9
    )
    with fp32_products(tf32=False):
        stock = draw()
        drop_kv_caches(var)
        with patched(var, FastSampling()):
            fast = draw()
    same_B = (fast - stock).abs().amax((1, 2, 3)) < 1e-3
    assert same_B.sum() >= 7, "a token on the edge between two codes may fall to the other side"


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_noticed() -> None:
    with pytest.raises(RuntimeError), no_waiting():
        torch.ones(1, device=CUDA).item()


@pytest.mark.parametrize("stage", ["stage 1", "stage 2", "stage 2, no teacher"])
def test_no_training_step_waits(stage: str) -> None:
    bench = Bench(load_upstream(), CUDA, REHEARSAL.geometry)
    if stage == "stage 1":
        options = tokenizer_step.options_of(bench, 2)
        training = tokenizer_step.training_of(bench, options, untrained_lpips(CUDA))
        part: Part = tokenizer_step.part(bench, stage, training, 2)
    else:
        part = student_step.StepBench(bench, 2, 2).ours(stage, teacher=stage == "stage 2")
    with kind_of(CUDA).tuned(tf32=True), part.ready():
        part.check(part.run())  # fills caches
        with no_waiting():
            result: Any = part.run()
        assert not bool(result.bad)


def test_a_fetched_value_is_that_of_its_moment() -> None:
    slow = torch.rand(4096, 4096, device=CUDA)
    value = torch.zeros(1000, device=CUDA)
    for _ in range(20):
        slow = slow @ slow.softmax(0)  # the device is behind while the host goes on
    value += slow.isfinite().all() + 1
    wait = kind_of(CUDA).fetch(value)
    value.fill_(7)
    fetched = wait()
    assert fetched.device.type == "cpu" and (fetched == 2).all()
    assert (kind_of(CUDA).fetch(value)() == 7).all()
