"""A file of VQVAE weights stands where a tokenizer's run does: eval, tokens, distill, aliasing; what it does not say is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, small_vae
from runs import run_main
from safetensors.torch import save_file
from students import write_run
from torch import Tensor

from patches import Focus, load_upstream, patched
from refocus_ext.errors import UsageError
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokens.bare_tokenizer import Assumed, digest_of, open_tokenizer, run_of
from refocus_ext.tokens.cache import default_folder

MAPS = Assumed(patch_nums=PATCH_NUMS)
OPTIONS = ("--patch-nums", "1,2,3,4")


@pytest.fixture
def vae_file(tmp_path: Path) -> Path:
    torch.save(small_vae(load_upstream()).state_dict(), tmp_path / "vae_ch32v64z8.pth")
    return tmp_path / "vae_ch32v64z8.pth"


def complaint(path: Path, assumed: Assumed = MAPS) -> str:
    with pytest.raises(UsageError) as error:
        open_tokenizer(path, assumed=assumed)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_geometry_and_tokens_are_those_of_the_file(vae_file: Path, images: Tensor) -> None:
    tokenizer = open_tokenizer(vae_file, assumed=MAPS)
    stock = small_vae(load_upstream()).eval()
    assert tokenizer.bare and tokenizer.alias is None and not tokenizer.pyramid.refocuses
    assert (tokenizer.trained_with.codebook_size, tokenizer.trained_with.latent_channels) == (64, 8)
    assert (tokenizer.trained_with.ch, tokenizer.trained_with.image_size) == (32, 64)
    for idx, expected in zip(tokenizer.vae.img_to_idxBl(images), stock.img_to_idxBl(images), strict=True):
        assert torch.equal(idx, expected)
    assert default_folder(tokenizer) == vae_file.with_name("vae_ch32v64z8.pth.tokens")
    assert "64 codes of 8, ch 32; taken with token maps 1,2,3,4, blur none and no alias tokenizer" in tokenizer.notes[0]


def test_a_pyramid_may_be_assumed(vae_file: Path, images: Tensor) -> None:
    tokenizer = open_tokenizer(vae_file, assumed=Assumed(PATCH_NUMS, "disk", 3, 6.0))
    pyramid = FocusPyramid(image_size=64, states=3, rho_max=6.0)
    stock = small_vae(load_upstream()).eval()
    with patched(stock, Focus(pyramid)):
        expected = stock.img_to_idxBl(images)
    assert tokenizer.pyramid == pyramid
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.vae.img_to_idxBl(images), expected, strict=True))
    small = open_tokenizer(vae_file, assumed=Assumed(PATCH_NUMS, "disk")).pyramid
    assert (small.states, small.rho_max) == (3, 3.0)


def test_the_weights_have_one_checksum_in_every_layout(vae_file: Path, tmp_path: Path) -> None:
    state = torch.load(vae_file, weights_only=True)
    torch.save({"trainer": {"vae_local": state}}, tmp_path / "ar-ckpt-best.pth")
    (tmp_path / "hub").mkdir()
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "hub" / "model.safetensors")
    sums = [
        open_tokenizer(path, assumed=MAPS).checksums()
        for path in (vae_file, tmp_path / "ar-ckpt-best.pth", tmp_path / "hub")
    ]
    assert sums[0] == sums[1] == sums[2] == {"vae.pth": digest_of(state)}
    state["quantize.embedding.weight"][0, 0] += 1
    assert digest_of(state) != sums[0]["vae.pth"]


def test_what_does_not_fit_is_a_sentence(vae_file: Path, tmp_path: Path) -> None:
    assert "was trained with 4 token maps, but 10 are assumed" in complaint(vae_file, Assumed())
    other = open_tokenizer(vae_file, assumed=Assumed((1, 2, 4)))  # upstream takes any number too, but it is said
    assert "it was trained with 4 token maps, but 3 are assumed (1,2,4)" in other.notes
    assert "patch_nums must rise to 4 = image_size 64" in complaint(vae_file, Assumed((1, 2, 4, 3)))
    assert "focus states would decimate" in complaint(vae_file, Assumed(PATCH_NUMS, "disk", 9))
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    assert "holds no VQVAE but 1 tensor of another network" in complaint(tmp_path / "w.pth")
    for assumed in (Assumed(), MAPS):
        told = complaint(tmp_path / "nowhere", assumed)
        assert "nowhere does not exist; a tokenizer is the run folder" in told and "or a file of VQVAE weights" in told


def test_a_file_in_a_run_keeps_its_runs_pyramid(tmp_path: Path) -> None:
    run = write_run(tmp_path / "distill")
    tokenizer = open_tokenizer(run / "vae.pth")  # no patch_nums are needed: the run records them
    assert tokenizer.pyramid == FocusPyramid(image_size=64, states=3, rho_max=6.0)
    assert "has a configuration beside it" in complaint(run / "vae.pth")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps({"command": "tokenizer"}))
    (tmp_path / "tokenizer" / "vae.pth").write_bytes(b"")
    assert run_of(tmp_path / "tokenizer" / "vae.pth") == run_of(tmp_path / "tokenizer") == tmp_path / "tokenizer"
    assert "is a run with its own configuration, which no patch_nums can change" in complaint(tmp_path / "tokenizer")


# ------------------------------------------------------------------------------------------------ the commands


def test_eval_measures_a_file(vae_file: Path, image_tree: Path, capsys: Any, tmp_path: Path) -> None:
    words = (
        "--tokenizer",
        str(vae_file),
        *OPTIONS,
        "--device",
        "cpu",
        "--workers",
        "0",
        "--json",
        str(tmp_path / "n.json"),
    )
    assert run_main("eval", *words, "--data", str(image_tree)) == 0
    out = capsys.readouterr().out
    assert (
        "all tokens against x, 4 images, centre crops of 64 px" in out
        and "a bare file, without an alias tokenizer" in out
    )
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["weights"] == {"vae.pth": digest_of(torch.load(vae_file, weights_only=True))}
    assert "not measured: LPIPS" in out and "--lpips-weights FILE" in out and "--lpips 0" not in out
    broken = image_tree / "val" / "cat" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2 + 200])
    for count, expected in (
        ("1", "of 1 image:"),
        ("4", f"cannot be decoded: {broken}; the next images were measured twice"),
    ):
        assert run_main("eval", *words, "--data", str(image_tree), "--images", count) == 0
        assert expected in capsys.readouterr().out
    assert run_main("eval", *words) == 2
    assert f"--data: the file {vae_file} does not say what it was trained on" in capsys.readouterr().err


def test_tokens_go_beside_the_file(vae_file: Path, image_tree: Path, capsys: Any) -> None:
    words = ("tokens", "--tokenizer", str(vae_file), "--data", str(image_tree), "--device", "cpu", "--workers", "0")
    assert run_main(*words, *OPTIONS) == 0
    assert "12 images, 120 views, 3,600 tokens" in capsys.readouterr().out
    assert Path(f"{vae_file}.tokens/index.json").is_file()
    assert run_main(*words, *OPTIONS, "--blur", "disk") == 2
    assert "pyramid.blur = none (this run wants disk)" in capsys.readouterr().err
    assert run_main(*words) == 2
    error = capsys.readouterr().err
    assert "was trained with 4 token maps" in error and "(--patch-nums, --focus-states, --rho-max)." in error


def test_aliasing_takes_files_and_says_what_has_no_use(vae_file: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_main("aliasing", "--patch-nums", "1,2", "--out", str(tmp_path / "a")) == 2
    assert "--patch-nums is for a bare file of VQVAE weights" in capsys.readouterr().err
    words = ("--tokenizer", str(vae_file), *OPTIONS, "--images", "2", "--device", "cpu", "--image-size", "64")
    assert run_main("aliasing", *words, "--out", str(tmp_path / "b"), "--rho-max", "3", "--focus-states", "3") == 0
    assert "taken with token maps 1,2,3,4, blur none" in capsys.readouterr().out
