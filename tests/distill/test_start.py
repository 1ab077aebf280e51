"""Weights to start from: a class embedding of another size, everything else kept, and what does not fit as one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, small_vae, write_images
from runs import run_main
from students import lively_var
from torch import Tensor

from patches import load_upstream
from refocus_ext.distill.networks import load_start
from refocus_ext.distill.start import TABLE, Start, Wanted, plan_start, read_start
from refocus_ext.errors import UsageError

WANTED = Wanted(2, False, PATCH_NUMS, 64, 8)


@pytest.fixture
def vae() -> Any:
    return small_vae(load_upstream()).requires_grad_(False).eval()


@pytest.fixture
def var_file(vae: Any, tmp_path: Path) -> Path:
    torch.save(lively_var(load_upstream(), vae=vae).state_dict(), tmp_path / "var_d2.pth")
    return tmp_path / "var_d2.pth"


def start(path: Path, classes: int, words: str = "", of_data: int = 0) -> Start:
    read, theirs = read_start(path, WANTED)
    return plan_start(read, theirs, classes, words, of_data)


def loaded(vae: Any, plan: Start, classes: int) -> tuple[dict[str, Tensor], Tensor]:
    """The student's weights, and the class embedding it was built with."""
    torch.manual_seed(0)
    var = load_upstream().build_var(vae, depth=2, num_classes=classes)
    fresh = var.state_dict()[TABLE].clone()
    load_start(var, plan)
    return var.state_dict(), fresh


def test_equal_classes_keep_everything(var_file: Path, vae: Any) -> None:
    plan = start(var_file, 5)
    state, _ = loaded(vae, plan, 5)
    theirs = torch.load(var_file, weights_only=True)
    assert plan.rows is None and not plan.lines
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())


@pytest.mark.parametrize("classes", [3, 9])
def test_another_number_starts_afresh_but_for_no_class(classes: int, var_file: Path, vae: Any) -> None:
    plan = start(var_file, classes)
    state, fresh = loaded(vae, plan, classes)
    theirs = torch.load(var_file, weights_only=True)
    assert state[TABLE].shape[0] == classes + 1
    assert torch.equal(state[TABLE][:-1], fresh[:-1]) and torch.equal(state[TABLE][-1], theirs[TABLE][-1])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items() if name != TABLE)
    assert (
        f"5 classes in the file, {classes} in the student, so all rows start afresh but that of no class"
        in plan.lines[0]
    )


def test_named_rows_in_the_order_of_the_labels(var_file: Path, vae: Any) -> None:
    (var_file.parent / "classes.json").write_text(json.dumps(["tench", "cat", "dog"]))
    plan = start(var_file, 4, "dog,0,none", 3)
    state, fresh = loaded(vae, plan, 4)
    theirs = torch.load(var_file, weights_only=True)[TABLE]
    assert plan.rows == (2, 0, 5, None)
    assert torch.equal(state[TABLE], torch.stack([theirs[2], theirs[0], theirs[5], fresh[3], theirs[5]]))
    assert "starts from the rows 2 (dog), 0 (tench), 5 (no class), 1 rows start afresh" in plan.lines[0]
    assert start(var_file, 5, "dog,cat", 2).rows == (2, 1, 2, 3, 4)  # of an equal table the others stay


def test_what_does_not_fit_is_a_sentence(var_file: Path) -> None:
    with pytest.raises(UsageError, match="2 classes are named to start from, but the data has 3"):
        start(var_file, 3, "0,1", 3)
    with pytest.raises(UsageError, match="class 5 is out of range"):
        start(var_file, 3, "0,1,5", 3)
    for wanted, words in (
        (WANTED.__class__(3, False, PATCH_NUMS, 64, 8), "its depth: 2, the student's: 3"),
        (WANTED.__class__(2, True, PATCH_NUMS, 64, 8), "its shared AdaLN: False, the student's: True"),
        (WANTED.__class__(2, False, (1, 2, 4), 64, 8), "its token maps: 1,2,3,4, the student's: 1,2,4"),
        (WANTED.__class__(2, False, PATCH_NUMS, 32, 8), "its codes: 64, the student's: 32"),
    ):
        with pytest.raises(UsageError, match=words):
            read_start(var_file, wanted)


def test_published_files_are_fine_tuned_without_a_stage_1_run(
    var_file: Path, vae: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`distill --tokenizer vae.pth --init var.pth --teacher off --data DIR`, on data with fewer classes."""
    monkeypatch.chdir(tmp_path)
    torch.save({"vae_local": vae.state_dict()}, "vae_small.pth")
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("n02099601", "n02123045")):
            write_images(tmp_path / "data" / split / name, count, seed=number)
    words = (
        "distill --tokenizer vae_small.pth --patch-nums 1,2,3,4 --init var_d2.pth --preset demo --depth 2 --steps 1 "
        "--batch-size 4 --samples 0 --lr 1e-9 --device cpu --out run"
    ).split()
    assert run_main(*words) == 2
    assert "--data: the file vae_small.pth does not say what it was trained on" in capsys.readouterr().err
    assert run_main(*words, "--data", "data") == 2
    assert "add --teacher off, or train them first and give --tokenizer runs/alias-vae_small" in capsys.readouterr().err
    done = run_main(*words, "--data", "data", "--teacher", "off", "--init-classes", "4,1")
    out = capsys.readouterr().out
    assert done == 0, out
    assert "read from its entry vae_local" in out and "which starts from the rows 4 (class 4), 1 (class 1)" in out
    state = torch.load("run/var_d2.pth", weights_only=True)
    theirs = torch.load(var_file, weights_only=True)
    torch.testing.assert_close(state[TABLE], theirs[TABLE][[4, 1, 5]], atol=1e-6, rtol=0)
    torch.testing.assert_close(state["head.weight"], theirs["head.weight"], atol=1e-6, rtol=0)
    copy = torch.load("run/vae.pth", weights_only=True)
    assert all(torch.equal(tensor, copy[name]) for name, tensor in vae.state_dict().items())
    assert Path("vae_small.pth.tokens/index.json").is_file()
    assert run_main("sample", "--student", "run", "--count", "2", "--device", "cpu") == 0
    (tmp_path / "list.txt").write_text("cat\nn02123045\ndog\nn02099601\nbird\n")
    more = ("--data", "data", "--teacher", "off", "--class-numbers", "list.txt", "--resume", "never")
    assert run_main(*words, *more) == 0
    assert "have their numbers among 5 classes (n02099601 is 3, n02123045 is 1)" in capsys.readouterr().out
    assert len(json.loads(Path("run/classes.json").read_text())) == 5
    assert json.loads(Path("run/config.json").read_text())["trained_classes"] == [1, 3]
    assert run_main(*words, *more[:-2]) == 0  # already trained
    (tmp_path / "list.txt").write_text("n02123045\ncat\ndog\nn02099601\nbird\n")
    assert run_main(*words, *more[:-2]) == 2
    assert "run was begun on other classes (in another order" in capsys.readouterr().err
