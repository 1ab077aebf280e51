"""Every warning comes with its fault and does not come without it."""

from __future__ import annotations

import json
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from run_folders import beats, write_checkpoint, write_folder, write_sign

from refocus_ext.engine.life_sign import PATIENCE
from refocus_ext.status.health import damage, warnings
from refocus_ext.status.run import read_run
from refocus_ext.storage.atomic import sha256

WORDS = ("tokenizer", "--steps", "600")  # the demo: 200 steps of warm-up, a validation every 100, token maps 1,2,3,4
WELL: dict[str, Any] = {"validation": {"psnr_prefix1_F1": 20.0, "perplexity_scale4": 30.0}}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 50, 0, 1 << 50))


def told(run: Path, **options: Any) -> list[str]:
    return warnings(read_run(run, time.time()), **options)


def test_a_healthy_run_has_no_warning(tmp_path: Path) -> None:
    assert told(write_folder(tmp_path / "a", *WORDS, steps=310, saved=300, validated=300, **WELL)) == []
    assert told(write_folder(tmp_path / "b", *WORDS)) == []
    assert told(write_folder(tmp_path / "c", *WORDS, steps=600, saved=600, **WELL)) == []


def test_collapsed_scales(tmp_path: Path) -> None:
    marked = {"collapsed_scale2": 1.0, "collapsed_scale3": 1.0, "perplexity_scale4": 30.0}
    assert told(write_folder(tmp_path / "a", *WORDS, steps=300, validation=marked)) == [
        "scales 2, 3 collapsed: hardly any codes are in use"
    ]
    old = {"perplexity_scale1": 1.0, "perplexity_scale4": 1.2}  # one token of each image proves nothing
    assert told(write_folder(tmp_path / "b", *WORDS, steps=300, validation=old)) == [
        "scale 4 collapsed: hardly any codes are in use"
    ]


def test_skipped_steps_and_broken_images(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=50)
    with open(run / "metrics.jsonl", "a") as file:
        for step in (51, 52):
            file.write(json.dumps({"step": step, "train/skipped": 1.0, "train/broken_images": 1.0}) + "\n")
    assert told(run) == [
        "2 steps skipped, the last at 52: loss or gradient was not finite",
        "1 image could not be decoded and was replaced",
    ]


def test_a_validation_that_is_overdue(tmp_path: Path) -> None:
    assert told(write_folder(tmp_path / "a", *WORDS, steps=300)) == [], "the autoencoder is warm after step 200"
    assert told(write_folder(tmp_path / "b", *WORDS, steps=301)) == [
        "no validation yet, though the first was due at step 300"
    ]


def test_lost_records(tmp_path: Path) -> None:
    assert told(write_folder(tmp_path / "a", *WORDS, steps=100, saved=150)) == [
        "metrics.jsonl ends at step 100, before the checkpoint of step 150: records were lost"
    ]
    assert "has no record" in told(write_folder(tmp_path / "b", *WORDS, saved=150))[0]


def test_a_torn_checkpoint_is_seen_and_a_flipped_bit_with_verify(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=100)
    path = write_checkpoint(run, 100)
    whole = path.read_bytes()
    assert told(run, verify=True) == []
    path.write_bytes(whole[:-8])
    assert "newest checkpoint is damaged (its end is missing)" in told(run)[0]
    path.write_bytes(bytes([whole[0], whole[1], whole[2] ^ 1]) + whole[3:])
    assert "does not match" in damage(path, verify=True) or "do not match" in damage(path, verify=True)
    assert damage(path, verify=False) == "", "seen only when it is read whole"


def test_shards(tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "rest.pt").write_text("rest")
    (draft / "manifest.json").write_text(json.dumps({"rest.pt": sha256(draft / "rest.pt")}))
    folder = draft.rename(tmp_path / f"step-00000004-{sha256(draft / 'manifest.json')[:16]}.sharded")
    assert damage(folder, verify=True) == ""
    (folder / "rest.pt").write_text("Rest")
    assert damage(folder, verify=False) == "" and "rest.pt does not match" in damage(folder, verify=True)
    (folder / "rest.pt").unlink()
    assert damage(folder, verify=False) == "rest.pt is missing"
    (folder / "manifest.json").write_text("{}")
    assert damage(folder, verify=False) == "its list of files is damaged"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 100))
    run = write_folder(tmp_path / "run", *WORDS, steps=100, saved=100)
    assert "the disk is nearly full" in told(run)[0]
    done = write_folder(tmp_path / "done", *WORDS, steps=600, saved=600, **WELL)
    assert told(done) == [], "it writes no more"


def test_silence(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=50, saved=50)
    write_sign(run, place="elsewhere", host="gpu7", pid=12, beats=beats(1.0, 1, 50, ago=720))
    (warning,) = told(run)
    assert warning.startswith("no sign of life for 12:0") and "process 12 on gpu7" in warning
    write_sign(run, beats=beats(1.0, 1, 50, ago=PATIENCE + 5))
    (warning,) = told(run)
    assert warning.startswith("its process is there, but it has made no step for 5:0")
    write_sign(run, beats=beats(1.0, 1, 50))
    assert told(run) == []
