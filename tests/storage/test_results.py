"""Where results go is checked before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.results import results_file, results_folder, write_numbers


def test_nothing_is_made_before_there_are_results(tmp_path: Path) -> None:
    assert results_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert results_file(str(tmp_path / "c" / "n.json")) == tmp_path / "c" / "n.json"
    assert not any(tmp_path.iterdir())
    write_numbers(tmp_path / "c" / "n.json", {"psnr": 1.5})
    assert json.loads((tmp_path / "c" / "n.json").read_text()) == {"psnr": 1.5}


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file cannot be a folder \(.*file is a file\); choose another one"):
        results_folder(str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"is a folder; give the name of a file"):
        results_file(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be a folder"):
        results_file(str(tmp_path / "file" / "n.json"))


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"n\.json could not be written \(.*\)"):
        write_numbers(tmp_path / "file" / "n.json", {})
