"""Where results go is checked before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.results import results_file, results_folder, write_numbers


def test_folders_are_made(tmp_path: Path) -> None:
    assert results_folder(str(tmp_path / "a" / "b")).is_dir()
    assert results_file(str(tmp_path / "c" / "n.json")) == tmp_path / "c" / "n.json" and (tmp_path / "c").is_dir()


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file cannot be a folder \(File exists\); choose another one"):
        results_folder(str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"is a folder; give the name of a file"):
        results_file(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be a folder"):
        results_file(str(tmp_path / "file" / "n.json"))


def test_numbers_are_json_or_a_sentence(tmp_path: Path) -> None:
    write_numbers(tmp_path / "n.json", {"psnr": 1.5})
    assert json.loads((tmp_path / "n.json").read_text()) == {"psnr": 1.5}
    with pytest.raises(RunFailed, match=r"n\.json could not be written \(No such file or directory\)"):
        write_numbers(tmp_path / "nowhere" / "n.json", {})
