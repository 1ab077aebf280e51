"""verify: a clean process with upstream alone makes the same bytes from every layout of files; and a difference is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WITHOUT_SUBMODULE, inside
from students import lively_var, write_run

from patches import load_upstream, submodule_present
from refocus_ext.commands import main
from refocus_ext.export import verify as verification
from refocus_ext.storage.atomic import sha256

needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "distill-d2")


@needs_submodule
def test_a_run_is_verified_and_recorded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    record = json.loads((run / "verified.json").read_text())
    out = capsys.readouterr().out
    assert "verified: VAR at 78b9539" in out and record["sha256"]["images"] in out
    assert record["files"] == {name: sha256(run / name) for name in ("var_d2.pth", "vae.pth")}
    assert record["sampled"]["top_k"] == 64 and record["sampled"]["labels"] == [0, 4]


@needs_submodule
def test_training_checkpoints_and_options_of_the_builder(tmp_path: Path) -> None:
    var = lively_var(load_upstream(), shared_aln=True, attn_l2_norm=False, num_classes=3)
    run = write_run(tmp_path / "run", var=var)
    trainer = {
        name: torch.load(run / file, weights_only=True)
        for name, file in (("var_wo_ddp", "var_d2.pth"), ("vae_local", "vae.pth"))
    }
    (tmp_path / "alone").mkdir()
    torch.save({"trainer": trainer}, tmp_path / "alone" / "ar-ckpt-last.pth")
    assert main(["verify", str(tmp_path / "alone" / "ar-ckpt-last.pth")]) == 0


@needs_submodule
@pytest.mark.parametrize("part", ["images", "decoded"])
def test_other_bytes_are_not_verified(
    part: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run)]) == 0

    def disturbed(path: Any, **options: Any) -> Any:
        student = load(path, **options)
        with torch.no_grad():
            if part == "images":
                inside(student.var).head.bias[0] += 4
            else:
                inside(student.vae).post_quant_conv.bias += 2e-7
        return student

    load = verification.load_student
    monkeypatch.setattr(verification, "load_student", disturbed)
    assert main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "NOT equal" in out and part in out.split("NOT equal")[1]
    assert not (run / "verified.json").exists()


@needs_submodule
def test_what_cannot_be_verified_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    var = lively_var(load_upstream(), embed_dim=64, num_heads=4)
    odd = write_run(tmp_path / "odd", var=var)
    for argv, words in (
        (["verify"], "verify needs a folder"),
        (["verify", str(tmp_path / "nothing")], "nothing does not exist"),
        (["verify", str(odd)], "has depth 2 with width 64 and 4 heads"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1 and "--student" not in error


@needs_submodule
def test_a_failing_clean_process_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "clean.py"
    script.write_text("raise SystemExit('this process was not clean: it imported patches')")
    monkeypatch.setattr(verification, "SCRIPT", script)
    assert main(["verify", str(run)]) == 1
    assert "failed (this process was not clean: it imported patches)" in capsys.readouterr().err


def test_without_the_submodule_it_refuses(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "submodule_present", lambda: False)
    assert main(["verify", str(run)]) == 1
    assert "git submodule update --init" in capsys.readouterr().err
