"""The list is read by people: 80 columns, and the figures that they look for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import beats, write_folder, write_sign

from refocus_ext.status.page import Entry, progress, validation
from refocus_ext.status.run import read_run

WORDS = ("tokenizer", "--steps", "600")


def entry(run: Path) -> Entry:
    return Entry.of(read_run(run, time.time()), verify=False)


def test_progress_of_every_state(tmp_path: Path) -> None:
    def shown(**folder: Any) -> str:
        return progress(read_run(write_folder(tmp_path / "run", *WORDS, **folder), time.time()))

    assert shown() == "not begun: no step of 600"
    assert shown(steps=7) == "interrupted: step 7 of 600; no checkpoint yet: it would begin again"
    assert shown(steps=7, saved=6) == "interrupted: step 7 of 600; resumes after step 6"
    write_sign(tmp_path / "run", started="1")
    assert shown(steps=7) == "interrupted: step 7 of 600; resumes after step 6 (it was killed)"
    write_sign(tmp_path / "run")
    assert shown(steps=7) == "running: step 7 of 600, before the first step of this start"
    write_sign(tmp_path / "run", beats=beats(0.5, 80, 100))
    assert shown(steps=100) == "running: step 100 of 600, 2.00 steps/s, 4:10 left"
    write_sign(tmp_path / "run", beats=beats(30.0, 80, 100))
    assert shown(steps=100) == "running: step 100 of 600, 30 s/step, 4:10:00 left"
    (tmp_path / "run" / "running.json").unlink()
    assert shown(steps=7, recorded=False) == "running: step 7 of 600 (its metrics were written 0:00 ago)"
    assert shown(steps=600, saved=600) == "finished: 600 steps"


def test_validations_of_both_stages(tmp_path: Path) -> None:
    values = {"psnr_prefix1_F1": 30.71, "psnr_prefix1_x": 1.0, "psnr_prefix2_F2": 27.94, "alias_explained1": 0.41}
    run = write_folder(tmp_path / "a", *WORDS, steps=300, validation=values)
    assert validation(read_run(run, 0)) == ("step 300: prefixes against F_k 30.7 27.9 dB; alias tokens explain 41%")
    values = {"ce_student": 4.8439, "gap_teacher": 0.0331, "gap_error": 0.0061}
    run = write_folder(tmp_path / "b", "distill", "--depth", "4", steps=40, validation=values)
    assert validation(read_run(run, 0)) == (
        "step 40: student's cross-entropy 4.844 nats per token; teacher's gap 0.033 +- 0.006"
    )
    run = write_folder(tmp_path / "c", *WORDS, steps=4)
    assert validation(read_run(run, 0)) == "none yet (the first is at step 300)"


def test_a_block_reads_in_eighty_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {f"psnr_prefix{k}_F{k}": 20.0 + k for k in range(1, 11)} | {"collapsed_scale2": 1.0}
    run = write_folder(Path("runs/tokenizer"), *WORDS, steps=300, saved=320, validation=values)
    lines = entry(run).lines()
    assert lines[0] == "runs/tokenizer: tokenizer, preset demo"
    assert lines[1] == "  state       interrupted: step 320 of 600; resumes after step 320"
    assert lines[-1] == "  next        bash run.sh tokenizer --steps 600 --out runs/tokenizer"
    assert max(map(len, lines)) <= 80 and sum(line.startswith("  warning") for line in lines) == 2


def test_json_holds_what_the_page_shows(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", *WORDS, steps=100, saved=100)
    write_sign(run, beats=beats(0.5, 80, 100))
    found = json.loads(json.dumps(entry(run).to_dict()))
    assert (found["state"], found["step"], found["steps"], found["checkpoint"]) == ("running", 100, 600, 100)
    assert found["seconds_left"] == pytest.approx(250) and found["validation"] is None and found["next"] == []
    assert Entry(run, None, "why").to_dict() == {"path": str(run), "state": "no run", "why": "why"}
