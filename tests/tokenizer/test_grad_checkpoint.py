"""`tokenizer --grad-checkpoint`: the same bits, with each pass of encoder and decoder recomputed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import inside
from runs import TINY
from torch import Tensor

from patches import Focus
from refocus_ext.commands import main
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.losses.adversarial import adaptive_weight
from refocus_ext.tokenizer.losses.objective import StructureObjective
from refocus_ext.tokenizer.recipe import StructureWeights

ROOT = Path(__file__).resolve().parents[2]


def train(data: Path, out: Path, *options: str) -> int:
    return main(["tokenizer", *TINY, "--data", str(data), "--out", str(out), *options])


def assert_same_run(one: Path, two: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    for name in ("vae.pth", "alias.pth"):
        a, b = (torch.load(run / name, weights_only=True) for run in (one, two))
        assert a.keys() == b.keys() and not [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--gan", "0.4", "--gan-start", "0.5", "--gan-warmup", "2", "--ema", "0.9", "--accumulate", "2"),
        ("--precision", "bf16"),
        ("--blur", "none"),
    ],
)
def test_a_run_has_the_same_bits(image_tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    words = (*options, "--save-every", "6")
    assert train(image_tree, tmp_path / "plain", *words) == 0
    assert train(image_tree, tmp_path / "recomputed", *words, "--grad-checkpoint") == 0
    assert_same_run(tmp_path / "plain", tmp_path / "recomputed")


def test_a_resumed_run_says_that_it_has_changed(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(image_tree, tmp_path / "whole") == 0
    assert train(image_tree, tmp_path / "run") == 0
    for path in (tmp_path / "run" / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    assert train(image_tree, tmp_path / "run", "--grad-checkpoint") == 0
    assert "grad_checkpoint = True (was False)" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_it_does_not_go_with_compile(image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(image_tree, tmp_path / "run", "--grad-checkpoint", "--compile") == 2
    assert "--grad-checkpoint and --compile do not go together; omit" in capsys.readouterr().err


def test_every_pass_runs_twice_and_the_adaptive_weight_runs_none(
    vae: Any, pyramid: FocusPyramid, images: Tensor
) -> None:
    Focus(pyramid, recomputes=True).apply(vae)
    objective = StructureObjective(vae.train(), StructureWeights(prefix=1))
    passes = {"encoder": 0, "decoder": 0}
    for name in passes:
        inside(vae).get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: passes.__setitem__(name, passes[name] + 1)
        )
    out = objective(images, 0)
    assert passes == {"encoder": 3, "decoder": 3}
    adaptive_weight(out.recon, out.image.square().mean(), inside(vae).decoder.conv_out.weight)
    assert passes == {"encoder": 3, "decoder": 3}
    out.loss.backward()
    assert passes == {"encoder": 6, "decoder": 6}


def test_nothing_is_recomputed_without_gradients(vae: Any, pyramid: FocusPyramid, images: Tensor) -> None:
    Focus(pyramid, recomputes=True).apply(vae)
    vae.eval()  # without noise
    calls: list[int] = []
    inside(vae).decoder.conv_out.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        recomputing = vae.img_to_reconstructed_img(images, last_one=True)
    Focus(pyramid).apply(vae)
    with torch.no_grad():
        assert torch.equal(recomputing, vae.img_to_reconstructed_img(images, last_one=True))
    assert len(calls) == 2, "the last layer is not called a second time for its input"


def test_two_processes_train_as_without_it(image_tree: Path, tmp_path: Path) -> None:
    """Also with --accumulate auto, which both processes answer with the same number."""

    def launch(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "refocus_ext",
        ]
        command = [*words, "tokenizer", *TINY, "--data", str(image_tree), "--out", str(out), "--workers", "0", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)

    plain = launch(tmp_path / "plain")
    recomputed = launch(tmp_path / "recomputed", "--grad-checkpoint", "--accumulate", "auto")
    assert plain.returncode == recomputed.returncode == 0, plain.stderr + recomputed.stderr
    assert recomputed.stdout.count("on each process for 2 images at once (--accumulate 1)") == 1
    assert json.loads((tmp_path / "recomputed" / "config.json").read_text())["options"]["accumulate"] == 1
    assert_same_run(tmp_path / "plain", tmp_path / "recomputed")
