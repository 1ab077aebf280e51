"""Files are whole or absent, and a folder in the place of a file is a sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from refocus_ext.errors import RunFailed
from refocus_ext.storage.atomic import copy_file, remove_torn, save_json, save_tensors, sha256, written_beside


def test_what_fails_halfway_leaves_the_file_before(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"n": 1})
    with pytest.raises(ValueError, match="halfway"), written_beside(tmp_path / "a.json") as beside:
        beside.write_text("{")
        raise ValueError("halfway")
    assert json.loads((tmp_path / "a.json").read_text()) == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_equal_tensors_make_equal_bytes_under_any_name(tmp_path: Path) -> None:
    for name in ("a.pth", "quite-another.pth"):
        save_tensors(tmp_path / name, {"w": torch.arange(5.0)})
    assert sha256(tmp_path / "a.pth") == sha256(tmp_path / "quite-another.pth")


def test_the_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000  # more than one piece
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_torn_files_are_removed_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.pth.123.part").write_bytes(b"torn")
    (tmp_path / "b.part").write_bytes(b"not ours")
    remove_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.part"]


def test_a_folder_in_the_place_of_the_file_stops_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with (
        pytest.raises(IsADirectoryError, match="a folder is in the place of the file"),
        written_beside(tmp_path / "a.json"),
    ):
        raise AssertionError("it was begun")
    with pytest.raises(
        RunFailed, match=r"a\.json could not be written \(a folder is in the place of the file [\w.]+\)"
    ):
        copy_file(Path(__file__), tmp_path / "a.json")


def test_a_copy_makes_its_folder(tmp_path: Path) -> None:
    copy_file(Path(__file__), tmp_path / "new" / "er" / "copy.py")
    assert (tmp_path / "new" / "er" / "copy.py").read_bytes() == Path(__file__).read_bytes()
