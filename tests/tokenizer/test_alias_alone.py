"""`tokenizer --init vae.pth --only alias`: the alias tokenizer of a published VQVAE, whose weights stay as they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vae, write_images
from runs import run_main
from torch import Tensor

from patches import load_upstream
from refocus_ext.tokens.trained_tokenizer import load_tokenizer

TINY = (
    "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --batch-size 4 --steps 6 --picture-every 3 "
    "--save-every 2 --revive 1 --device cpu --only alias"
).split()


@pytest.fixture
def vae_file(tmp_path: Path) -> Path:
    vae = small_vae(load_upstream(), patch_nums=(1, 2), share_quant_resi=2)
    torch.save({"vae": vae.state_dict()}, tmp_path / "vae_any.pth")
    return tmp_path / "vae_any.pth"


def weights(run: Path, name: str) -> dict[str, Tensor]:
    return torch.load(run / name, weights_only=True)


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


@pytest.mark.parametrize("extra", [(), ("--ema", "0.9"), ("--alias-codebook", "shared"), ("--accumulate", "2")])
def test_the_structure_weights_do_not_change_by_a_bit(
    extra: tuple[str, ...], vae_file: Path, image_tree: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    words = ("tokenizer", *TINY, "--init", str(vae_file), "--data", str(image_tree), *extra)
    assert run_main(*words, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "only the alias tokenizer is trained" in said and "read from its entry vae" in said
    assert "64 codes of 8" in said  # the geometry is the file's, not the preset's
    assert bits(weights(out, "vae.pth")) == bits(torch.load(vae_file, weights_only=True)["vae"])
    assert run_main(*words, "--out", str(tmp_path / "short"), "--steps", "1") == 0
    one, six = weights(tmp_path / "short", "alias.pth"), weights(out, "alias.pth")
    assert any(not torch.equal(one[name], six[name]) for name in six)
    tokenizer = load_tokenizer(out)
    assert tokenizer.alias is not None and tokenizer.trained_with.codebook_size == 64


def test_a_run_is_resumed_to_the_bit(vae_file: Path, image_tree: Path, tmp_path: Path) -> None:
    words = ("tokenizer", *TINY, "--init", str(vae_file), "--data", str(image_tree), "--ema", "0.9")
    for name in ("whole", "parts"):
        assert run_main(*words, "--out", str(tmp_path / name)) == 0
    for checkpoint in sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[1:]:
        checkpoint.unlink()
    assert run_main(*words, "--out", str(tmp_path / "parts")) == 0
    for file in ("vae.pth", "alias.pth"):
        assert bits(weights(tmp_path / "whole", file)) == bits(weights(tmp_path / "parts", file))


def test_what_trains_nothing_is_refused(vae_file: Path, image_tree: Path, tmp_path: Path, capsys: Any) -> None:
    base = ("tokenizer", *TINY, "--data", str(image_tree), "--out", str(tmp_path / "run"))
    for extra, words in (
        ((), "--only alias needs --init FILE"),
        (("--init", str(vae_file), "--alias", "off"), "--only alias with --alias off trains nothing"),
        (("--init", str(vae_file), "--focus-states", "1"), "--only alias with --focus-states 1 trains nothing"),
        (
            ("--init", str(vae_file), "--patch-nums", "1,3,4", "--image-size", "64"),
            "was trained with 2 token maps, but this run has 3",
        ),
    ):
        assert run_main(*base, *extra) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ the geometry of a small file


def test_the_image_size_follows_the_token_maps_that_are_typed(vae_file: Path, image_tree: Path, capsys: Any) -> None:
    words = ("tokenizer", "--preset", "demo", "--init", str(vae_file), "--only", "alias", "--data", str(image_tree))
    small = (*words, "--blur", "none", "--dry-run", "--patch-nums", "1,2")
    assert run_main(*small) == 0
    out = capsys.readouterr().out
    assert "crops of 32 px" in out and "2 of the 3 of preset demo, the most that 32 px have room for" in out
    assert run_main(*small, "--focus-states", "3") == 2  # what is typed is not changed
    assert "use at most 2 states" in capsys.readouterr().err
    assert run_main(*small, "--image-size", "64") == 2
    error = capsys.readouterr().err
    assert "the token maps 1,2 must rise and end at image size / 16 = 4" in error and "--image-size 32" in error
    assert run_main(*words, "--dry-run") == 2
    assert "has 4 (1,2,3,4); give the patch_nums that it was trained with (--patch-nums)." in capsys.readouterr().err


def test_of_values_that_do_not_fit_the_presets_are_named_as_such(capsys: Any) -> None:
    for words, expected in (
        ("--patch-nums 1,2", "the token maps 1,2 must rise and end at image size / 16 = 4 (preset demo has 64 px)"),
        ("--image-size 128", "the token maps 1,2,3,4 of preset demo must rise and end at image size / 16 = 8; give"),
        ("--image-size 128 --patch-nums 1,2", "the token maps 1,2 must rise and end at image size / 16 = 8; give"),
    ):
        assert run_main("tokenizer", "--preset", "demo", "--dry-run", *words.split()) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["", "--preset demo --batch-size 4", "--batch-size 4 --blur disk --rho-max 3"])
@pytest.mark.parametrize("data", ["small", "my photos"])
def test_the_command_that_distill_suggests_runs_as_printed(
    typed: str,
    data: str,
    vae_file: Path,
    image_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    image_tree.rename("my photos")
    for split in ("train", "val"):  # smaller than the crop
        write_images(Path("small") / split / "cat", 8, size=(20, 20))
    words = ["--tokenizer", vae_file.name, "--patch-nums", "1,2", "--data", data, "--device", "cpu", *typed.split()]
    if not typed:
        words += ["--batch-size", "8", "--depth", "2"]
    assert run_main("distill", *words) == 2
    (command,) = re.findall(r"`(.*)`", capsys.readouterr().err)
    printed = shlex.split(command)
    assert printed[:3] == ["bash", "run.sh", "tokenizer"]
    assert run_main(*printed[2:], "--dry-run", "--device", "cpu") == 0
    assert run_main(*printed[2:], *"--steps 1 --device cpu --workers 0 --val-images 2".split()) == 0
    capsys.readouterr()
    made = [*words, "--tokenizer", "runs/alias-vae_any", "--depth", "2", "--preset", "demo", "--dry-run"]
    maps = made.index("--patch-nums")
    del made[maps : maps + 2]
    for flag in ("--blur", "--rho-max"):
        if flag in made:
            del made[made.index(flag) : made.index(flag) + 2]
    assert run_main("distill", *made) == 0
    assert "alias gates in the last 2 blocks, 4 alias tokens" in capsys.readouterr().out
