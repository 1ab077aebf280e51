"""notebook: cells run as they stand in a clean interpreter; other geometries are told what to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WITHOUT_SUBMODULE, small_vae
from PIL import Image
from students import lively_var, write_run

from patches import load_upstream, submodule_present
from refocus_ext.commands import main
from refocus_ext.errors import RunFailed
from refocus_ext.export import notebook
from refocus_ext.export.builder_arguments import NOTEBOOK, changes_for_notebook
from refocus_ext.export.run_cells import code_cells

needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)

BUILD = """\
import torch, sys
import PIL.Image as PImage
assert not [name for name in sys.modules if name.split('.')[0] in ('refocus_ext', 'patches')]
from models import build_vae_var
vae, var = build_vae_var(V=64, Cvae=8, ch=32, device='cpu', patch_nums=(1, 2, 3, 4), num_classes=5, depth=2)
var.load_state_dict(torch.load('var_d2.pth'), strict=True)
vae.load_state_dict(torch.load('vae.pth'), strict=True)"""
SAMPLE = """\
with torch.inference_mode(), torch.autocast('cuda', enabled=True, dtype=torch.float16):
    image = var.eval().autoregressive_infer_cfg(B=1, label_B=torch.tensor([1]), g_seed=0, top_k=20)
PImage.new('L', (8, 8)).show()
PImage.fromarray((image[0].permute(1, 2, 0) * 255).numpy().astype('uint8')).show()"""


def write_notebook(path: Path, cells: Sequence[str]) -> Path:
    texts = [{"cell_type": "markdown", "source": ["no code"]}]
    texts += [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": texts, "nbformat": 4}))
    return path


@needs_submodule
def test_cells_run_as_they_stand_and_the_last_picture_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many as the tests have: bits depend on it
    run = write_run(tmp_path / "run")
    book = write_notebook(tmp_path / "tiny.ipynb", [BUILD, SAMPLE])
    assert code_cells(str(book)) == [BUILD, SAMPLE]
    files = {name: run / name for name in ("var_d2.pth", "vae.pth")}
    assert notebook.run_notebook(book, files, tmp_path / "new" / "out.png", "cpu") == (64, 64)
    state = {name: torch.load(path, weights_only=True) for name, path in files.items()}
    vae = small_vae(load_upstream(), test_mode=True)
    vae.load_state_dict(state["vae.pth"])
    var = lively_var(load_upstream(), vae=vae)
    image = var.autoregressive_infer_cfg(B=1, label_B=torch.tensor([1]), g_seed=0, top_k=20)
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert np.array_equal(np.asarray(picture), (image[0].permute(1, 2, 0) * 255).numpy().astype("uint8"))


def test_failing_cells_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for cells, words in (
        (["x = 1", "assert x == 2, 'x is 1'"], "tiny.ipynb failed (code cell 2: AssertionError: x is 1)"),
        (["%matplotlib inline"], "code cell 1: SyntaxError"),
        (["x = 1"], "showed no picture"),
    ):
        book = write_notebook(tmp_path / "tiny.ipynb", cells)
        with pytest.raises(RunFailed) as error:
            notebook.run_notebook(book, {}, tmp_path / "out.png", "cpu")
        assert words in str(error.value)
    assert not (tmp_path / "out.png").exists()


@needs_submodule
def test_another_geometry_is_told_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main(["notebook", "--weights", str(run)]) == 2
    error = capsys.readouterr().err
    for change in ("V=64", "Cvae=8", "ch=32", "patch_nums=(1, 2, 3, 4)", "num_classes=5", "MODEL_DEPTH=2", "top_k=64"):
        assert change in error
    assert "vae_ckpt='vae_ch32v64z8.pth'" in error and len(error.strip().splitlines()) == 1
    for argv, words in (
        (["notebook"], "notebook needs --weights"),
        (["notebook", "--weights", str(tmp_path / "no")], "--weights"),
    ):
        assert main(argv) == 2
        assert words in capsys.readouterr().err


def test_what_to_change_for_other_presets() -> None:
    assert changes_for_notebook(NOTEBOOK) == []
    assert changes_for_notebook(NOTEBOOK | {"patch_nums": list(NOTEBOOK["patch_nums"])}) == []
    assert changes_for_notebook(NOTEBOOK | {"V": 8192}) == ["V=8192", "vae_ckpt='vae_ch160v8192z32.pth'"]
    assert changes_for_notebook(NOTEBOOK | {"depth": 20}) == ["MODEL_DEPTH=20"]
    assert changes_for_notebook(NOTEBOOK | {"depth": 12})[1].startswith("the assert below MODEL_DEPTH")


@needs_submodule
def test_the_table_is_what_the_notebook_says() -> None:
    text = "\n".join(code_cells(str(notebook.DEMO)))
    for name in ("V", "Cvae", "ch", "share_quant_resi", "num_classes", "shared_aln"):
        assert f"{name}={NOTEBOOK[name]}," in text
    assert f"patch_nums = {NOTEBOOK['patch_nums']}" in text and f"MODEL_DEPTH = {NOTEBOOK['depth']}" in text


@needs_submodule
def test_nested_files_are_exported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    trainer = {"var_wo_ddp": torch.load(run / "var_d2.pth", weights_only=True)}
    (tmp_path / "nested").mkdir()
    torch.save({"trainer": trainer}, tmp_path / "nested" / "var_d2.pth")
    shutil.copy(run / "vae.pth", tmp_path / "nested" / "vae.pth")
    monkeypatch.setattr(notebook, "check_geometry", lambda student: None)
    assert main(["notebook", "--weights", str(tmp_path / "nested")]) == 2
    assert "`bash run.sh export` writes one" in capsys.readouterr().err


def test_without_the_submodule_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebook, "submodule_present", lambda: False)
    assert main(["notebook", "--weights", str(tmp_path)]) == 1
    assert "git submodule update --init" in capsys.readouterr().err


@needs_submodule
@pytest.mark.slow
def test_the_unedited_demo_on_full_size_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights of VAR-d16 and its VQVAE (1.7 GB), exported, then the notebook on the CPU: some minutes."""
    upstream = load_upstream()
    torch.manual_seed(0)
    vae = upstream.build_vae()
    var = upstream.build_var(vae, depth=16)
    with torch.no_grad():
        var.head.weight.normal_(std=0.2)  # as initialised every code is as likely as any other
    (tmp_path / "weights").mkdir()
    torch.save(var.state_dict(), tmp_path / "weights" / "var_d16.pth")
    torch.save(vae.state_dict(), tmp_path / "weights" / "vae_ch160v4096z32.pth")
    del var, vae
    exported = tmp_path / "exported"
    assert main(["export", "--run", str(tmp_path / "weights"), "--to", str(exported), "--no-verify"]) == 0
    assert (exported / "vae_ch160v4096z32.pth").is_file() and "runs unedited" in (exported / "README.md").read_text()
    picture = tmp_path / "picture.png"
    assert main(["notebook", "--weights", str(exported), "--out", str(picture), "--device", "cpu"]) == 0
    assert "executed unedited" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (8 * 256, 256) and np.asarray(image).std() > 1
