"""What makes an invocation the same run, against configurations of other times and places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refocus_ext.engine.run_folder import RunFolder, check_run_folder
from refocus_ext.engine.same_run import RunIdentity, file_meaning
from refocus_ext.errors import UsageError

OURS: dict[str, Any] = {"data": "a", "steps": 5, "lr": 0.1, "precision": "auto", "accumulate": 1}


def identity(**changes: Any) -> RunIdentity:
    values: dict[str, Any] = dict(options=OURS, command="tokenizer")
    return RunIdentity(**(values | changes))


def test_an_option_that_is_younger_than_the_run_is_at_its_default() -> None:
    old = {"identity": OURS}
    young = OURS | {"dropout": 0.0, "maps": [1, 2]}
    defaults = {"dropout": 0.0, "maps": (1, 2)}
    assert not identity(options=young, defaults={"dropout": 0.0, "maps": [1, 2]}).compare(old).refused
    changed = identity(options=young | {"dropout": 0.5}, defaults=defaults | {"maps": [1, 2]}).compare(old)
    assert changed.refused == {"dropout": "dropout = 0.0, this one has 0.5"}


def test_an_option_that_left_the_identity_is_told() -> None:
    ours = {name: value for name, value in OURS.items() if name != "accumulate"}
    found = identity(options=ours, told={"accumulate": 4, "processes": 2}).compare({"identity": OURS})
    assert not found.refused and found.told == ["accumulate = 4 (was 1)"], "of an old run the processes are not known"
    again = {"identity": ours, "told": {"accumulate": 4, "processes": 1}}
    assert identity(options=ours, told={"accumulate": 4, "processes": 2}).compare(again).told == [
        "processes = 2 (was 1)"
    ]


def test_data_are_compared_by_content_and_without_it_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    there = {"identity": OURS | {"data": "/b"}, "meant": {"data": {"digest": "1"}}}
    moved = identity(meant={"data": {"digest": "1"}}).compare(there)
    assert not moved.refused and moved.told == ["data = a (was /b, with the same contents)"]
    assert list(identity(meant={"data": {"digest": "2"}}).compare(there).refused) == ["data"]
    same_words = {"identity": OURS, "meant": {"data": {"digest": "1"}}}
    assert "something else now" in identity(meant={"data": {"digest": "2"}}).compare(same_words).refused["data"]
    for spelling in ("a/", "./a", str(tmp_path / "a"), "link"):
        old = {"identity": OURS | {"data": spelling}}
        assert not identity(meant={"data": {"digest": "1"}}).compare(old).refused
    assert identity(meant={"data": {"digest": "1"}}).compare({"identity": OURS | {"data": "b"}}).refused


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (("fp32", "fp32"), ("fp16", "fp16"), True),
        (("bf16", "bf16"), ("fp16", "fp16"), True),
        (("auto", "bf16"), ("fp16", "fp16"), True),
        (("auto", "fp16"), ("auto", "bf16"), True),  # the same command on another device
        (("fp16", "fp16"), ("fp32", "fp32"), False),
        (("auto", "bf16"), ("fp32", "fp32"), False),
        (("fp16", "fp16"), ("auto", "bf16"), False),
        (("fp16", "fp16"), ("auto", None), True),  # of an old run it is not known
    ],
)
def test_precision_may_be_raised(ours: tuple[str, str], theirs: tuple[str, str | None], same: bool) -> None:
    old = {"identity": OURS | {"precision": theirs[0]}, "meant": {"precision": theirs[1]}}
    here = identity(options=OURS | {"precision": ours[0]}, meant={"precision": ours[1]})
    assert bool(here.compare(old).refused) != same


def test_options_without_effect_do_not_count() -> None:
    old = {"identity": OURS | {"gan_start": 0.5}}
    assert identity().compare(old).refused
    assert not identity(idle=frozenset({"gan_start"})).compare(old).refused


def test_the_networks_of_a_loss_are_compared_by_content() -> None:
    ours = identity(networks={"lpips_weights": "a" * 64})
    assert ours.record()["networks"] == {"lpips_weights": "a" * 64}
    assert not ours.compare({"identity": OURS}).refused, "an old run does not say which network it had"
    assert not ours.compare({"identity": OURS, "networks": {"lpips_weights": "a" * 64}}).refused
    other = {"identity": OURS, "networks": {"lpips_weights": "b" * 64}}
    sentence = "lpips_weights = a network of checksum bbbbbbbbbbbb, this one has aaaaaaaaaaaa"
    assert ours.compare(other).refused == {"lpips_weights": sentence}


def test_the_meaning_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert file_meaning("") == "" and file_meaning(str(tmp_path / "none")) is None
    assert file_meaning(str(tmp_path / "a")) == file_meaning(str(tmp_path / "b")) != ""


def test_a_run_that_made_no_step_gives_way(tmp_path: Path) -> None:
    """Killed before its first step, or refused by an older version after it had made the folder."""
    RunFolder(tmp_path / "run", identity())
    other = identity(options=OURS | {"lr": 0.2})
    assert "has not made a step" in RunFolder(tmp_path / "run", other).notes[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["lr"] == 0.2
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}')
    with pytest.raises(UsageError, match=r"lr = 0\.2, this one has 0.1"):
        check_run_folder(tmp_path / "run", identity())
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"lr = 0\.2, this one has 0.1"):
        check_run_folder(tmp_path / "run", identity(command="distill"))
