"""Photographs from anywhere: folders at any depth and single files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_images

from refocus_ext.errors import UsageError
from refocus_ext.images.photographs import find_photographs, load_square


def test_folders_at_any_depth_and_single_files_in_order(tmp_path: Path) -> None:
    write_images(tmp_path / "many" / "deep" / "er", 2)
    write_images(tmp_path / "many", 1, seed=1)
    write_images(tmp_path / "other", 1, seed=2)
    (tmp_path / "many" / "notes.txt").write_text("no image")
    (tmp_path / "many" / ".hidden.jpg").write_bytes(b"x")
    found = find_photographs([str(tmp_path / "many"), str(tmp_path / "other" / "000.jpg")])
    names = [str(Path(found.name(i)).relative_to(tmp_path)) for i in range(len(found))]
    assert names == ["many/000.jpg", "many/deep/er/000.jpg", "many/deep/er/001.jpg", "other/000.jpg"]
    assert found.classes == ("photographs",) and not found.square and found.labels == (0,) * 4


def test_at_most_so_many_are_spread_evenly(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    found = find_photographs([str(tmp_path)], at_most=3)
    assert [Path(found.name(i)).name for i in range(len(found))] == ["000.jpg", "002.jpg", "004.jpg"]
    assert len(find_photographs([str(tmp_path)], at_most=99)) == 6


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is neither a folder nor an image"):
        find_photographs([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no images \(\.jpg"):
        find_photographs([str(tmp_path / "empty")])


def test_the_central_square_in_its_range(tmp_path: Path) -> None:
    write_images(tmp_path, 1, size=(90, 60))
    square = load_square(str(tmp_path / "000.jpg"), 32)
    assert square.shape == (3, 32, 32) and square.dtype == torch.float32
    assert -1 <= float(square.min()) < float(square.max()) <= 1


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UsageError, match=r"text\.jpg is not an image that can be opened"):
        load_square(str(tmp_path / "text.jpg"), 32)
    with pytest.raises(UsageError, match=r"there is no image .*nowhere"):
        load_square(str(tmp_path / "nowhere.jpg"), 32)
