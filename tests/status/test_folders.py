"""Runs are found up to three folders deep; what is none is left out, and what cannot be read is no accident."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_folder

from refocus_ext.status.folders import is_run, runs_in


def test_runs_are_found_to_depth_three_and_not_searched(tmp_path: Path) -> None:
    found = [write_folder(tmp_path / name, "tokenizer", steps=1) for name in ("a", "b/c", "d/e/f")]
    write_folder(tmp_path / "d" / "e" / "f" / "inner", "tokenizer", steps=1)
    write_folder(tmp_path / "x/y/z/too-deep", "tokenizer", steps=1)
    write_folder(tmp_path / ".hidden", "tokenizer", steps=1)
    assert list(runs_in(tmp_path)) == found
    assert list(runs_in(found[0])) == [found[0]]


def test_a_run_that_has_not_begun_is_one_and_other_configurations_are_none(tmp_path: Path) -> None:
    assert is_run(write_folder(tmp_path / "planned", "tokenizer"))
    for name, content in (("hub", '{"architectures": []}'), ("list", "[]"), ("torn", '{"iden')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        assert not is_run(tmp_path / name)
    (tmp_path / "torn" / "checkpoints").mkdir()
    assert is_run(tmp_path / "torn"), "a damaged run must not be passed over"
    assert not is_run(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    write_folder(tmp_path / "open", "tokenizer", steps=1)
    real = Path.iterdir

    def iterdir(self: Path) -> object:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # root may read anything
    assert list(runs_in(tmp_path)) == [tmp_path / "closed", tmp_path / "open"]
