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
