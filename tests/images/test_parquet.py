"""Images in parquet files, as the Hub's `datasets` library writes them."""

from __future__ import annotations

import builtins
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import TINY, run_main

from refocus_ext.errors import UsageError
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.kinds import find_images, find_split

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: parquet files are not tested")
from pyarrow import parquet  # noqa: E402

NAMES = ["tench", "goldfish", "red fox"]


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((80, 72), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, numbers: range, *, names: list[str] | None = NAMES, struct: bool = True) -> None:
    images = [{"bytes": picture(i), "path": f"{i}.JPEG"} if struct else picture(i) for i in numbers]
    table = arrow.table({"image": images, "label": [i % 3 for i in numbers]})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=3)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """8 and 5 training images in two files, in row groups of 3; 4 for validation."""
    write(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", range(8))
    write(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", range(8, 13))
    write(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", range(20, 24))
    (tmp_path / "hub" / "data" / "test-00000-of-00001.parquet").write_bytes(b"not looked at")
    return tmp_path / "hub"


def test_rows_are_images_in_any_order(dataset: Path) -> None:
    train, val = find_images(str(dataset))
    assert (len(train), len(val)) == (13, 4) and train.classes == val.classes == tuple(NAMES)
    for index in (12, 0, 7, 8, 3, 12, 5):
        with train.open(index) as file:
            assert file.read() == picture(index)
        assert train.label(index) == index % 3
    copy = pickle.loads(pickle.dumps(train))
    with copy.open(9) as file:
        assert file.read() == picture(9)
    assert len(pickle.dumps(train)) < 4000, "no pixels travel to the loader processes"
    assert train.name(9).endswith("train-00001-of-00002.parquet, row 1 of row group 0")


def test_the_same_rows_are_held_out_wherever_the_files_lie(dataset: Path, tmp_path: Path) -> None:
    (dataset / "data" / "validation-00000-of-00001.parquet").unlink()
    train, val = find_images(str(dataset), 0.3)
    keys, identity = [val.key(index) for index in range(len(val))], val.identity()
    assert {*keys} | {train.key(index) for index in range(len(train))} == {
        f"/train-0000{file}-of-00002.parquet/{row}" for file, rows in ((0, 8), (1, 5)) for row in range(rows)
    }
    moved = find_images(str(dataset.rename(tmp_path / "elsewhere")), 0.3)[1]
    assert [moved.key(index) for index in range(len(moved))] == keys and moved.identity() == identity


def test_the_identity_follows_the_images_and_not_the_folder(dataset: Path, tmp_path: Path) -> None:
    before = find_split(str(dataset), "train").identity()
    moved = dataset.rename(tmp_path / "elsewhere")
    assert find_split(str(moved), "train").identity() == before and before["images"] == 13
    write(moved / "data" / "train-00001-of-00002.parquet", range(9, 14))
    assert find_split(str(moved), "train").identity() != before


def test_bare_bytes_and_no_names_are_enough(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(4), names=None, struct=False)
    train = find_split(str(tmp_path), "train")
    assert train.classes == ("0", "1", "2") and Crops(train, 64)[SampleKey(0, 3)].image.shape == (3, 64, 64)


def test_a_tokenizer_trains_on_parquet_files(dataset: Path, tmp_path: Path) -> None:
    words = [*TINY, "--steps", "3", "--data", str(dataset), "--out", str(tmp_path / "run"), "--workers", "1"]
    assert run_main("tokenizer", *words) == 0
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == NAMES


def test_what_is_missing_or_damaged_is_one_sentence(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(UsageError, match="has parquet files for training but none for val"):
        find_images(str(dataset))
    write(dataset / "data" / "validation-00000-of-00001.parquet", range(3), names=["one"])
    with pytest.raises(UsageError, match="labels go from 0 to 2, but there are 1 classes"):
        find_split(str(dataset), "val")
    parquet.write_table(arrow.table({"text": ["a"]}), tmp_path / "train-0.parquet")
    with pytest.raises(UsageError, match="has the columns text; images need one of image bytes and one called label"):
        find_split(str(tmp_path), "train")
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match=r"cannot be read .*; download them again"):
        find_split(str(tmp_path), "train")

    real = builtins.__import__

    def without_arrow(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_arrow)
    with pytest.raises(UsageError, match="parquet files need pyarrow: `pip install pyarrow`"):
        find_split(str(dataset), "train")
