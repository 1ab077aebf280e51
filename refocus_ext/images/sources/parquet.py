"""Images inside parquet files, as data sets of the Hugging Face Hub have them: a column of image bytes and one of labels.

An image is found by its row; the row group it lies in (about a hundred images) is read as a whole. In the order of the
file, as a token cache is made, that costs nothing; in random order each image takes its whole group.
"""

from __future__ import annotations

import io
import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refocus_ext.errors import UsageError
from refocus_ext.images.sources.folder import NoValidation
from refocus_ext.images.sources.interface import ImageSource, identity_of

FILE = re.compile(r"^(train|val|validation)[-_.].*\.parquet$|^(train|val|validation)\.parquet$")
GROUPS = 4  # row groups that a process keeps
INSTALL = "parquet files need pyarrow: `pip install pyarrow` into the environment of this project"


@dataclass(frozen=True, eq=False)
class ParquetImages(ImageSource):
    """Images in the rows of parquet files, with labels; see `ImageSource`.

    Args:
        files: in the order of their rows.
        column: of the images: binary, or a struct with a field `bytes`.
        first_G, file_G, group_G: first image, number of the file, and number in that file, of each row group.
        label_N: of each image.
    """

    files: tuple[str, ...]
    column: str
    first_G: np.ndarray
    file_G: np.ndarray
    group_G: np.ndarray
    label_N: np.ndarray
    classes: tuple[str, ...]
    square: bool = False
    names_parts = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", OrderedDict())

    def __len__(self) -> int:
        return len(self.label_N)

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the row group, row in it)."""
        group = int(np.searchsorted(self.first_G, index, side="right")) - 1
        return group, index - int(self.first_G[group])

    def name(self, index: int) -> str:
        group, row = self._place(index)
        return f"{self.files[self.file_G[group]]}, row {row} of row group {self.group_G[group]}"

    def key(self, index: int) -> str:
        """The file, and the row in it."""
        file = self.file_G[self._place(index)[0]]
        first = int(self.first_G[int(np.argmax(self.file_G == file))])
        return f"/{Path(self.files[file]).name}/{index - first}"

    def label(self, index: int) -> int:
        return int(self.label_N[index])

    def open(self, index: int) -> BinaryIO:
        group, row = self._place(index)
        value = self._group(group)[row].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if not data:
            raise OSError(f"{self.name(index)} holds no image")
        return io.BytesIO(data)

    def _group(self, number: int) -> Any:
        kept: OrderedDict[int, Any] = self.__dict__["_kept"]
        if number not in kept:
            import pyarrow as arrow
            from pyarrow import parquet

            try:
                table = parquet.ParquetFile(self.files[self.file_G[number]])
                kept[number] = table.read_row_group(int(self.group_G[number]), columns=[self.column]).column(0)
            except (OSError, arrow.ArrowException) as error:
                raise OSError(f"{self.files[self.file_G[number]]} cannot be read ({error})") from error
        kept.move_to_end(number)
        while len(kept) > GROUPS:
            kept.popitem(last=False)
        return kept[number]

    def identity(self) -> dict[str, Any]:
        """From the names and sizes of the files, the rows and the labels; a folder may move."""
        paths = [Path(file) for file in self.files]
        ends = np.append(self.first_G[1:], len(self))
        file_N = np.repeat(self.file_G, ends - self.first_G)
        names = (
            (f"/{paths[file].name}/{i}", int(label))
            for i, (file, label) in enumerate(zip(file_N, self.label_N, strict=True))
        )
        return identity_of(self.classes, self.square, names, (path.stat().st_size for path in paths))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}


def holds_parquet(data: str) -> bool:
    """Whether a folder, or its folder data/, has parquet files named for the training split."""
    return Path(data).is_dir() and bool(_files(Path(data), "train"))


def parquet_images(data: str, split: str) -> ParquetImages:
    """A Hub data set of images, downloaded: train-00000-of-00294.parquet, validation-00000-of-00014.parquet, ...

    Raises:
        UsageError: pyarrow is not installed, a split is missing, a file is damaged, or has no images or labels.
    """
    try:
        import pyarrow as arrow
    except ImportError:
        raise UsageError(f"{data} holds parquet files, and {INSTALL}.") from None
    paths = _files(Path(data), split)
    if not paths:
        raise NoValidation(
            f"{data} has parquet files for training but none for {split} (such as {split}-00000.parquet)."
        )
    try:
        return _index(paths)
    except (OSError, arrow.ArrowException) as error:
        raise UsageError(f"the parquet files of {data} cannot be read ({error}); download them again.") from None


def _files(folder: Path, split: str) -> list[Path]:
    wanted = ("train",) if split == "train" else ("val", "validation")
    found = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    matches = ((FILE.match(path.name), path) for path in sorted(found))
    return [path for match, path in matches if match and (match[1] or match[2]) in wanted]


def _index(paths: list[Path]) -> ParquetImages:
    from pyarrow import parquet

    schema = parquet.read_schema(paths[0])
    column, label = _columns(schema, paths[0])
    firsts, files, groups, labels, count = [], [], [], [], 0
    for number, path in enumerate(paths):
        table = parquet.ParquetFile(path)
        for group in range(table.metadata.num_row_groups):
            firsts.append(count)
            files.append(number)
            groups.append(group)
            count += table.metadata.row_group(group).num_rows
        labels.append(table.read(columns=[label]).column(0).to_numpy())
    label_N = np.concatenate(labels).astype(np.int64)
    names = _class_names(schema, label) or tuple(map(str, range(int(label_N.max()) + 1 if count else 0)))
    if not count:
        raise UsageError(f"{paths[0]} and the files after it have no rows.")
    if label_N.min() < 0 or label_N.max() >= len(names):
        raise UsageError(
            f"{paths[0].parent}: labels go from {label_N.min()} to {label_N.max()}, but there are {len(names)} classes."
        )
    first_G, file_G, group_G = (np.asarray(values, np.int64) for values in (firsts, files, groups))
    return ParquetImages(tuple(map(str, paths)), column, first_G, file_G, group_G, label_N, names)


def _columns(schema: Any, path: Path) -> tuple[str, str]:
    """Names of the image and the label column."""
    import pyarrow as arrow

    def is_image(kind: Any) -> bool:
        if arrow.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)

    images = [field.name for field in schema if is_image(field.type)]
    labels = [
        field.name
        for field in schema
        if arrow.types.is_integer(field.type) and field.name in ("label", "labels", "cls")
    ]
    if not images or not labels:
        raise UsageError(
            f"{path} has the columns {', '.join(schema.names)}; images need one of image bytes and one called label, of numbers."
        )
    return images[0], labels[0]


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The class names that the Hub's `datasets` library writes into a file; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError):
        return ()
