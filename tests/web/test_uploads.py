"""Uploaded pictures are read as everywhere, and refused with one sentence that names the file alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pages import write_pictures

from refocus_ext.errors import UsageError
from refocus_ext.images.photographs import load_square
from refocus_ext.web.uploads import read_upload


def test_a_picture_is_read_as_by_the_commands(tmp_path: Path) -> None:
    picture, _ = write_pictures(tmp_path)
    assert torch.equal(read_upload(str(picture), 64), load_square(str(picture), 64))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    _, broken = write_pictures(tmp_path)
    for path, words in (
        (None, "no picture is chosen; choose one first."),
        (str(broken), "broken.jpg is not an image that can be opened; give another one."),
        (str(tmp_path / "gone.jpg"), r"gone.jpg is not there any more \(No such file or directory\); choose it again."),
    ):
        with pytest.raises(UsageError, match=f"^{words}$") as caught:
            read_upload(path, 64)
        assert str(tmp_path) not in str(caught.value)
