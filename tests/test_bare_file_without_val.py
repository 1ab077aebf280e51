"""A bare file of VQVAE weights and pictures without val/: eval measures all, tokens and distill hold out the same share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vae, write_images
from runs import TINY, run_main

from patches import load_upstream

BARE = "--tokenizer tiny.pth --patch-nums 1,2 --data photos --device cpu".split()
DISTILL = (
    "distill --teacher off --preset demo --depth 2 --steps 1 --crops 1 --batch-size 4 --samples 0 --device cpu".split()
)


@pytest.fixture(params=["flat", "classes", "train"])
def here(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny VQVAE beside twelve pictures in each layout that has no val/."""
    monkeypatch.chdir(tmp_path)
    vae = small_vae(load_upstream(), patch_nums=(1, 2), share_quant_resi=2)
    torch.save(vae.state_dict(), "tiny.pth")
    for number, name in enumerate(("cat", "dog")):
        folder = {"flat": "photos", "classes": f"photos/{name}", "train": f"photos/train/{name}"}[request.param]
        write_images(tmp_path / folder, 6 if request.param != "flat" else 12, seed=number)
    return tmp_path


def distill(*words: str) -> int:
    return run_main(*DISTILL, *words)


def test_eval_measures_every_picture_and_says_so(here: Path, capsys: Any) -> None:
    assert run_main("eval", *BARE, "--workers", "0") == 0
    out = capsys.readouterr().out
    assert "nothing is known that a bare file was trained on: all its 12 images are measured" in out
    assert "on 12 images of photos" in out and "all tokens against x, 12 images" in out


def test_tokens_and_distill_hold_out_the_same_images(here: Path, capsys: Any) -> None:
    for command in (("tokens", "--crops", "1", "--workers", "0"), DISTILL):
        assert run_main(*command, *BARE) == 2
        error = capsys.readouterr().err
        assert "has no val/ folder" in error and "hold out a share of the training images (--val-share 0.05)" in error
    assert run_main("tokens", "--crops", "1", "--workers", "0", *BARE, "--val-share", "0.3") == 0
    assert "(all but a share of 0.3)" in capsys.readouterr().out
    assert distill(*BARE, "--val-share", "0.3", "--out", "run") == 0
    out = capsys.readouterr().out
    assert "complete and verified" in out and "are held out for validation and never trained on (share 0.3)" in out
    assert "held-out images" in out
    assert distill(*BARE, "--val-share", "0.6", "--out", "other") == 2
    assert "made with another data set (all but a share of 0.3 of 12 images, not all but a share of 0.6" in (
        capsys.readouterr().err
    )


def test_the_share_is_part_of_the_run_where_it_has_an_effect(here: Path, capsys: Any) -> None:
    assert distill(*BARE, "--val-share", "0.3", "--out", "run", "--cache", "off") == 0
    assert json.loads(Path("run/config.json").read_text())["identity"]["val_share"] == 0.3
    capsys.readouterr()
    assert distill(*BARE, "--val-share", "0.6", "--out", "run", "--cache", "off") == 2
    assert "val_share = 0.3, this one has 0.6" in capsys.readouterr().err


def test_a_runs_own_share_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", 12)
    assert run_main("tokenizer", *TINY, "--data", "photos", "--val-share", "0.3", "--out", "tok") == 0
    words = ("--tokenizer", "tok", "--out", "run", "--cache", "off")
    capsys.readouterr()
    for command in (DISTILL, ("tokens", "--device", "cpu")):
        assert run_main(*command, "--tokenizer", "tok", "--val-share", "0.2") == 2
        error = capsys.readouterr().err
        assert "--val-share: 0.2 is not the share of the tokenizer tok, which held out a share of 0.3; omit it" in error
    assert distill(*words) == 0
    assert "val_share" not in json.loads(Path("run/config.json").read_text())["identity"]
    assert distill(*words, "--val-share", "0.3") == 0  # the same run


def test_data_with_its_own_val_needs_no_share(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(small_vae(load_upstream(), patch_nums=(1, 2), share_quant_resi=2).state_dict(), "tiny.pth")
    words = ("--tokenizer", "tiny.pth", "--patch-nums", "1,2", "--data", str(image_tree), "--cache", "off")
    assert distill(*words, "--out", "run") == distill(*words, "--out", "run", "--val-share", "0.3") == 0
