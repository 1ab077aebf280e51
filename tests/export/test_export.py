"""export: plain files that hold tensors only, twins, a card that says the truth; the Hub there and back, without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import WITHOUT_SUBMODULE, small_vae
from safetensors import safe_open
from safetensors.torch import load_file
from students import CLASSES, lively_var, write_run
from torch import Tensor

from patches import load_upstream, submodule_present
from patches.upstream import SUBMODULE
from refocus_ext.commands import main
from refocus_ext.errors import UsageError
from refocus_ext.export import folder as folder_module
from refocus_ext.export import verify, writing
from refocus_ext.export.builder_arguments import NOTEBOOK, vae_file_name
from refocus_ext.sampling.student import load_student
from refocus_ext.storage.upstream_weights import vae_state_dict, var_state_dict

needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)
VAR, VAE = "var_d2.pth", "vae_ch32v64z8.pth"
NAMES = {VAR, VAE, "var_d2.safetensors", "vae_ch32v64z8.safetensors", "geometry.json", "classes.json", "README.md"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "distill-d2")


def export_to(folder: Path, run: Path, *words: str, verified: bool = False) -> int:
    return main(["export", "--run", str(run), "--to", str(folder), *words, *([] if verified else ["--no-verify"])])


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    assert export_to(tmp_path / "x", run) == 0
    return tmp_path / "x"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error
    return error


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------------ the files


def test_files_hold_the_runs_tensors_and_nothing_else(run: Path, exported: Path) -> None:
    assert names(exported) == NAMES
    for file, theirs in ((VAR, VAR), (VAE, "vae.pth")):
        state = torch.load(exported / file, weights_only=True)
        twin = load_file(exported / file.replace(".pth", ".safetensors"))
        assert all(type(value) is Tensor for value in state.values())
        assert equal(state, torch.load(run / theirs, weights_only=True)) and equal(state, twin)
    with safe_open(exported / "var_d2.safetensors", "pt") as file:
        assert json.loads(file.metadata()["build_vae_var"])["patch_nums"] == [1, 2, 3, 4]
    assert equal(var_state_dict(exported / "var_d2.safetensors"), var_state_dict(exported / VAR))
    assert equal(vae_state_dict(exported / "vae_ch32v64z8.safetensors"), vae_state_dict(exported / VAE))
    modes = {(exported / name).stat().st_mode for name in NAMES}
    assert len(modes) == 1


def test_only_upstreams_geometry_has_upstreams_name() -> None:
    assert vae_file_name(NOTEBOOK) == "vae_ch160v4096z32.pth"
    assert vae_file_name(NOTEBOOK | {"V": 8192}) == "vae_ch160v8192z32.pth"


def test_an_export_is_a_student_with_its_pyramid(run: Path, exported: Path, images: Tensor) -> None:
    ours, theirs = load_student(exported), load_student(run)
    assert ours.pyramid == theirs.pyramid and ours.classes == tuple(CLASSES) and ours.geometry == theirs.geometry
    assert all(torch.equal(a, b) for a, b in zip(ours.tokens(images), theirs.tokens(images), strict=True))
    assert load_student(exported / VAR).pyramid == theirs.pyramid
    assert load_student(exported / "var_d2.safetensors").pyramid == theirs.pyramid
    state = torch.load(exported / VAR, weights_only=True)
    torch.save(state | {"head.bias": state["head.bias"] + 1}, exported / VAR)
    with pytest.raises(UsageError, match="its sha256 differs"):
        load_student(exported)


def test_an_exported_demo_is_one(tmp_path: Path) -> None:
    """Its pictures are drawn with less guidance, as those of its run."""
    run = write_run(tmp_path / "demo", preset="demo")
    assert export_to(tmp_path / "x", run) == 0 and export_to(tmp_path / "again", tmp_path / "x") == 0
    assert [load_student(tmp_path / name).is_demo for name in ("demo", "x", "again")] == [True] * 3
    plain = write_run(tmp_path / "plain")
    assert export_to(tmp_path / "y", plain) == 0 and not load_student(tmp_path / "y").is_demo


def test_training_checkpoints_and_exports_can_be_exported(run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    checkpoint = tmp_path / "alone" / "ar-ckpt-best.pth"
    trainer = {
        "var_wo_ddp": torch.load(run / VAR, weights_only=True),
        "vae_local": torch.load(run / "vae.pth", weights_only=True),
    }
    torch.save({"epoch": 1, "trainer": trainer}, checkpoint)
    assert export_to(tmp_path / "plain", checkpoint) == 0 and export_to(tmp_path / "again", exported) == 0
    assert equal(torch.load(tmp_path / "plain" / VAR, weights_only=True), trainer["var_wo_ddp"])
    assert "The weights came without a record" in (tmp_path / "plain" / "README.md").read_text()
    again = tmp_path / "again"
    assert all((again / name).read_bytes() == (exported / name).read_bytes() for name in (VAR, VAE, "README.md"))


def test_the_card_tells_of_the_run_and_not_where_it_was(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["options"] = {"steps": 400, "batch_size": 32, "lr": 1e-4, "data": "/home/someone/imagenet"}
    (run / "config.json").write_text(json.dumps(config))
    records = [{"step": 200, "val/ce_student": 4.5}, {"step": 400, "val/ce_student": 4.25}, {"step": 400, "loss": 1.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert export_to(tmp_path / "x", run) == 0
    card = (tmp_path / "x" / "README.md").read_text()
    for words in (
        "| steps | 400 |",
        "| data | imagenet |",
        "4.2500 at step 400",
        "V=64, Cvae=8, ch=32",
        "3 states, blur disk",
    ):
        assert words in card
    assert "Not verified: it was exported with --no-verify" in card
    assert "someone" not in card + (tmp_path / "x" / "geometry.json").read_text()


@needs_submodule
def test_the_cards_code_runs_with_upstream_alone(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, flags=re.S)[0]
    script = f"import sys\nsys.path.insert(0, {str(SUBMODULE)!r})\n{code}\nassert images.shape == (1, 3, 64, 64)"
    subprocess.run([sys.executable, "-I", "-c", script], cwd=exported, check=True, stderr=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------ verified or not


@needs_submodule
def test_it_is_verified_and_says_so(run: Path, tmp_path: Path) -> None:
    assert export_to(tmp_path / "x", run, verified=True) == 0
    record = json.loads((tmp_path / "x" / "verified.json").read_text())
    assert record["files"].keys() == {VAR, VAE}
    assert f"`{record['sha256']['images']}`" in (tmp_path / "x" / "README.md").read_text()
    assert export_to(tmp_path / "x", run) == 0  # what was verified is not what is there now
    assert not (tmp_path / "x" / "verified.json").exists()


def test_other_bytes_fail_and_are_not_uploaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    verdict = verify.Verdict({"images": "a", "decoded": "b"}, {"images": "c", "decoded": "b"}, [0, 4])
    monkeypatch.setattr(writing, "prove", lambda *_: (verdict, ""))
    assert export_to(tmp_path / "x", run, "--push", "me/student", verified=True) == 1
    assert "Not verified: upstream alone made different bytes" in (tmp_path / "x" / "README.md").read_text()
    assert not (tmp_path / "x" / "verified.json").exists() and hub.calls == []


def test_without_the_submodule_it_exports_and_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "submodule_present", lambda: False)
    assert export_to(tmp_path / "x", run, verified=True) == 0
    assert "not verified: the submodule var_upstream was missing" in capsys.readouterr().out
    assert "Not verified: the submodule" in (tmp_path / "x" / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ the folder


def test_an_earlier_export_is_replaced(exported: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", var=lively_var(load_upstream(), depth=1))
    assert export_to(exported, other) == 0
    assert names(exported) == {name.replace("var_d2", "var_d1") for name in NAMES}
    assert load_student(exported).geometry.depth == 1


def test_what_is_not_ours_is_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    (exported / "notes.txt").write_text("mine")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / VAR).write_text("theirs")
    (tmp_path / "file").write_text("mine")
    before = (exported / VAR).read_bytes()
    for folder, words in (
        (exported, "holds other files (notes.txt)"),
        (tmp_path / "published", "holds other files (var_d2.pth)"),
        (tmp_path / "file", "is a file"),
        (run, "holds other files"),
    ):
        assert export_to(folder, run) == 2
        assert words in complaint(capsys)
    assert (exported / VAR).read_bytes() == before and (tmp_path / "published" / VAR).read_text() == "theirs"


def test_a_folder_in_the_place_of_a_file_is_a_sentence(
    exported: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exported / VAR).unlink()
    (exported / VAR).mkdir()
    capsys.readouterr()
    assert export_to(exported, run) == 1
    assert f"{exported} could not be written (a folder is in the place of the file {VAR})" in complaint(capsys)
    (exported / VAR).rmdir()
    assert export_to(exported, run) == 0 and names(exported) == NAMES


def test_an_interrupted_export_says_so_and_is_completed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "save_file", full)
        assert export_to(tmp_path / "x", run) == 1
    assert "No space left on device" in complaint(capsys)
    with pytest.raises(UsageError, match="was interrupted; rerun the same command"):
        load_student(tmp_path / "x")
    assert export_to(tmp_path / "x", run) == 0 and names(tmp_path / "x") == NAMES


def test_wrong_usage(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for argv, words in (
        (["--to", "x"], "export needs --run"),
        (["--run", str(run)], "export needs --to"),
        (["--run", str(tmp_path / "no"), "--to", "x"], "--run: " + str(tmp_path / "no")),
        (["--run", str(run), "--to", "x", "--private"], "--private needs --push"),
        (["--run", str(run), "--to", "x", "--push", "name"], "give OWNER/NAME"),
        (["--run", str(run), "--to", "x", "--push", "a/b/c"], "give OWNER/NAME"),
        (["--run", str(run), "--to", "x", "--push", "me/student"], "needs a token; set HF_TOKEN"),
    ):
        assert main(["export", *argv]) == 2
        error = complaint(capsys)
        assert words in error and "--student" not in error
    odd = write_run(tmp_path / "odd", var=lively_var(load_upstream(), embed_dim=64, num_heads=4))
    assert export_to(tmp_path / "x", odd) == 2
    assert "depth 2 with width 64 and 4 heads" in complaint(capsys)
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------ the Hub


class FakeHub:
    """Stands in for HfApi: notes the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return fake


def test_push_uploads_the_files_of_the_export(run: Path, tmp_path: Path, hub: FakeHub) -> None:
    assert export_to(tmp_path / "x", run, "--push", "me/student", "--private") == 0
    (made, how), (uploaded, what) = hub.calls
    assert (made, how) == ("create_repo", {"repo_id": "me/student", "private": True, "exist_ok": True})
    assert uploaded == "upload_folder" and what["repo_id"] == "me/student" and what["folder_path"] == tmp_path / "x"
    assert set(what["allow_patterns"]) == NAMES


def test_dry_run_writes_and_uploads_nothing(
    run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_to(tmp_path / "x", run, "--push", "me/student", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES) and "/me/student" in out and "17.5 MB" in out
    assert hub.calls == [] and not (tmp_path / "x").exists()


def test_a_failing_push_is_told(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error: no write access")

    monkeypatch.setattr(hub, "upload_folder", refuse)
    assert export_to(tmp_path / "x", run, "--push", "me/student") == 1
    assert "--push: the upload to me/student failed (401 Client Error: no write access)" in complaint(capsys)
    assert names(tmp_path / "x") == NAMES
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert export_to(tmp_path / "x", run, "--push", "me/student") == 2
    assert "HF_HUB_OFFLINE is set" in complaint(capsys)


COMMIT = "0123456789" * 4


def put_into_cache(cache: Path, repository: str, exported: Path) -> None:
    """A snapshot as huggingface_hub lays it out: blobs, and links to them."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(exported.iterdir())):
        (root / "blobs" / str(number)).write_bytes(path.read_bytes())
        os.symlink(root / "blobs" / str(number), root / "snapshots" / COMMIT / path.name)


def pull(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "refocus_ext", "pull", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SUBMODULE.parent)


def test_pull_takes_the_offline_cache(exported: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "cache", "me/student", exported)
    result = pull(tmp_path / "cache", "me/student", "--to", str(tmp_path / "back"))
    assert result.returncode == 0, result.stderr
    assert "the sha256 of all 4 weights files matches geometry.json" in result.stdout
    assert names(tmp_path / "back") == NAMES and not any(path.is_symlink() for path in (tmp_path / "back").iterdir())
    assert load_student(tmp_path / "back").pyramid == load_student(exported).pyramid
    missing = pull(tmp_path / "cache", "me/other", "--to", str(tmp_path / "no"))
    assert missing.returncode == 1 and "me/other is not in the Hub's cache" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1 and not (tmp_path / "no").exists()


def test_pull_keeps_students_apart(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deeper student on another VAE does not take the place of the first one's VAE and geometry."""
    upstream = load_upstream()
    deeper = lively_var(upstream, vae=small_vae(upstream, seed=5).requires_grad_(False).eval(), depth=3)
    assert export_to(tmp_path / "y", write_run(tmp_path / "deeper", var=deeper)) == 0
    to = tmp_path / "to"
    for source, code in ((exported, 0), (tmp_path / "y", 2), (exported, 0)):
        capsys.readouterr()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, source=source, **__: str(source))
        assert main(["pull", "me/student", "--to", str(to)]) == code
    assert names(to) == NAMES and load_student(to).pyramid is not None


def test_pull_sees_damage_and_wrong_usage(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(exported))
    assert main(["pull", "me/student", "--to", str(tmp_path / "two"), "--depth", "4"]) == 1
    assert "has no VAR in upstream's format" in complaint(capsys)
    data = bytearray((exported / VAR).read_bytes())
    data[len(data) // 2] ^= 1
    (exported / VAR).write_bytes(data)
    capsys.readouterr()
    assert main(["pull", "me/student", "--to", str(tmp_path / "back")]) == 1
    assert "is not the file that was exported" in complaint(capsys)
    for argv, words in (
        (["pull"], "pull needs a repository and a folder"),
        (["pull", "student", "--to", "x"], "give OWNER/NAME"),
    ):
        assert main(argv) == 2
        assert words in complaint(capsys)
