"""metrics.jsonl: the last step and validation, also after a kill in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refocus_ext.status.records import read_records


def write(run: Path, *records: object, end: str = "") -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)


def test_the_last_validation_is_that_of_its_step_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"step": 4, "train/loss": 1.0},
        {"step": 4, "val/psnr": 10.0, "val/collapsed_scale2": 1.0},
        {"step": 8, "val/psnr": 12.0},
        {"step": 8, "val/alias": 0.5},
        {"step": 9, "train/loss": 1.0, "train/broken_images": 2.0},
    )
    found = read_records(tmp_path)
    assert (found.step, found.validated, found.broken) == (9, 8, 2)
    assert found.validation == {"psnr": 12.0, "alias": 0.5}, "the scale is not collapsed any more"


def test_a_validation_as_last_record_counts(tmp_path: Path) -> None:
    write(tmp_path, {"step": 4, "train/skipped": 1.0, "train/broken_images": 0.0}, {"step": 4, "val/psnr": 10.0})
    found = read_records(tmp_path)
    assert (found.step, found.validated, found.validation, found.skipped) == (4, 4, {"psnr": 10.0}, [4])


@pytest.mark.parametrize("end", ['{"step": 6, "tra', '{"step": 6, "val/psnr": 1', "\0\0\0", '{"step"'])
def test_a_torn_line_is_passed_over(end: str, tmp_path: Path) -> None:
    write(tmp_path, {"step": 5, "val/psnr": 3.0}, {"step": 5, "train/skipped": 1.0}, end=end)
    found = read_records(tmp_path)
    assert (found.step, found.validated, found.skipped) == (5, 5, [5])


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    assert read_records(tmp_path).written is None and read_records(tmp_path).step is None
    write(tmp_path)
    assert read_records(tmp_path).step is None and read_records(tmp_path).written is not None
