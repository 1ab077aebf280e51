"""The `aliasing` command before any work: what it opens, and the option that a complaint names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_images

from refocus_ext.errors import UsageError
from refocus_ext.evidence.aliasing import command
from refocus_ext.evidence.aliasing.options import AliasingOptions
from refocus_ext.images.photographs import find_photographs


def test_photographs_only_where_they_are_given(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    assert command._photographs(AliasingOptions(), None) is None
    found = command._photographs(AliasingOptions(data=(str(tmp_path),)), 2)
    assert found == find_photographs([str(tmp_path)], 2) and len(found) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": "x", "reference": "folder"}, "--samples: x is neither a file nor a folder"),
        ({"samples": "folder", "reference": "x"}, "--reference: x is neither a file nor a folder"),
        ({"reference": "folder"}, "--reference needs --samples; give both or neither"),
    ],
)
def test_a_complaint_names_the_option(
    options: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "folder", 2, size=(40, 40))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        command._sample_sets(AliasingOptions(**options))  # type: ignore[arg-type]


def test_canvases_are_batches_with_a_border_for_the_shift(tmp_path: Path) -> None:
    write_images(tmp_path, 3, size=(200, 160))
    size, images = 32, find_photographs([str(tmp_path)])
    canvas = size + 2 * command.MARGIN
    batches = list(command._canvases(images, [0, 2], size, torch.device("cpu")))
    assert torch.cat(batches).shape == (2, 3, canvas, canvas)
