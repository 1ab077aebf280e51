"""The Hub's side of an export, without the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.export import hub
from refocus_ext.storage.atomic import sha256


@pytest.mark.parametrize(
    ("size", "shown"), [(17, "17 bytes"), (2_500, "2.5 kB"), (17_500_000, "17.5 MB"), (1_240_000_000, "1,240.0 MB")]
)
def test_sizes_for_people(size: int, shown: str) -> None:
    assert hub.shown_size(size) == shown


def test_one_depth_or_all() -> None:
    assert hub.patterns(None)[:2] == ["var_d*.pth", "var_d*.safetensors"]
    assert hub.patterns(16)[:2] == ["var_d16.pth", "var_d16.safetensors"]


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "a b/c", "a/-"])
def test_a_name_that_is_no_repository(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name or 'nothing'} is not a repository of the Hub; give OWNER/NAME\.$"):
        hub.check_target(name, dry_run=True)


def test_an_upload_needs_the_network_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.check_target("me/student", dry_run=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="me/student needs the network, but HF_HUB_OFFLINE is set"):
        hub.check_target("me/student")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="me/student needs a token; set HF_TOKEN"):
        hub.check_target("me/student")


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "var_d2.pth").symlink_to(tmp_path / "blob")
    hub.copy(tmp_path / "snapshot", tmp_path / "to", ["var_d2.pth"])
    copied = tmp_path / "to" / "var_d2.pth"
    assert copied.read_bytes() == b"weights" and not copied.is_symlink()
    copied.unlink()
    copied.mkdir()
    with pytest.raises(
        RunFailed, match=r"var_d2\.pth could not be written \(a folder is in the place of the file [\w.]+\)"
    ):
        hub.copy(tmp_path / "snapshot", tmp_path / "to", ["var_d2.pth"])


def write(folder: Path, **files: str) -> Path:
    """Files by their names, with underscores for the dots before their extensions."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content)
    return folder


def test_a_folder_holds_one_student_or_several_of_one_vae(tmp_path: Path) -> None:
    ours = {"vae_ch160v4096z32_pth": "vae", "geometry_json": "{}", "classes_json": "[]"}
    first = write(tmp_path / "first", var_d2_pth="2", README_md="first", **ours)
    write(tmp_path / "to", var_d2_pth="2", verified_json="{}", README_md="first", **ours)
    names = [path.name for path in first.iterdir()]
    assert hub.left_over(first, tmp_path / "nothing there", names) == []
    assert hub.left_over(first, tmp_path / "to", names) == [], "the same again; its verification still holds"

    # other depths of a repository that describes none, as upstream's
    plain = write(tmp_path / "plain", var_d2_pth="2", vae_ch160v4096z32_pth="vae")
    deeper = write(tmp_path / "deeper", var_d3_pth="3", vae_ch160v4096z32_pth="vae", README_md="of all depths")
    assert hub.left_over(deeper, plain, [path.name for path in deeper.iterdir()]) == []

    for name, content in (("vae_ch160v4096z32_pth", "another"), ("geometry_json", "{1}"), ("classes_json", "[1]")):
        other = write(tmp_path / name, **{"var_d3_pth": "3", **ours, name: content})
        there = {path: path.read_bytes() for path in (tmp_path / "to").iterdir()}
        where = r"to holds var_d2\.pth of another student, to which this repository's "
        with pytest.raises(UsageError, match=where + ".".join(name.rsplit("_", 1)) + " does not belong; choose"):
            hub.left_over(other, tmp_path / "to", [path.name for path in other.iterdir()])
        assert there == {path: path.read_bytes() for path in (tmp_path / "to").iterdir()}

    # a new version of the same student, without what the old one had beside it
    newer = write(tmp_path / "newer", var_d2_pth="better", vae_ch32v4096z32_pth="vae")
    gone = hub.left_over(newer, tmp_path / "to", [path.name for path in newer.iterdir()])
    assert [path.name for path in gone] == [
        "README.md", "classes.json", "geometry.json", "vae_ch160v4096z32.pth", "verified.json",
    ]  # fmt: skip


def test_checksums_are_compared_where_an_export_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "var_d2.pth").write_bytes(b"weights")
    hub.check_sums(tmp_path)  # upstream's own files have none
    assert "sha256" not in capsys.readouterr().out
    sums = {"var_d2.pth": sha256(tmp_path / "var_d2.pth"), "not-pulled.pth": "0"}
    (tmp_path / "geometry.json").write_text(json.dumps({"weights": sums}))
    hub.check_sums(tmp_path)
    assert "the sha256 of all 1 weights files matches geometry.json" in capsys.readouterr().out
    (tmp_path / "var_d2.pth").write_bytes(b"other")
    with pytest.raises(RunFailed, match=r"var_d2\.pth is not the file that was exported"):
        hub.check_sums(tmp_path)
