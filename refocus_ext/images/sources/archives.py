"""Images inside uncompressed tar files, read where they lie: ImageNet as it is distributed, and WebDataset shards.

A tar file is indexed once: the position and size of every image in it. The index is kept in the user's cache folder, so
that the next command starts at once. Nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from refocus_ext.counting import counted
from refocus_ext.errors import UsageError
from refocus_ext.images.checks import SMALL_DATA_SET
from refocus_ext.images.class_names import read_class_names
from refocus_ext.images.order import spread
from refocus_ext.images.sources.files import EXTENSIONS
from refocus_ext.images.sources.folder import NoValidation
from refocus_ext.images.sources.interface import ImageSource, identity_of
from refocus_ext.storage.atomic import written_beside

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SEPARATOR = "\x1e"  # between names in the stored index
KEYS = "the key of a WebDataset sample ends at the first dot, and it has one picture"
SHARD = re.compile(r"(?:^|[-_.])(train|val|validation)(?:ing)?(?:[-_.].*)?\.tar$", re.IGNORECASE)


class Entry(NamedTuple):
    """A file inside a tar file."""

    name: str
    offset: int  # bytes from the start of the tar file
    size: int  # bytes


@dataclass(frozen=True, eq=False)
class TarImages(ImageSource):
    """Images in tar files, with labels; see `ImageSource`.

    Args:
        files: the tar files.
        names: name of each image, starting with a slash, as it would be in an ImageFolder's split.
        file_N, offset_N, size_N: where each image lies: number of its tar file, first byte, bytes.
        label_N: of each image.
        left_out: number of pictures in the tar files that are none of these images, and the first one's name.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]
    file_N: np.ndarray
    offset_N: np.ndarray
    size_N: np.ndarray
    label_N: np.ndarray
    classes: tuple[str, ...]
    left_out: tuple[int, str] = (0, "")
    square: bool = False
    names_parts = True

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return self.names[index]

    def name(self, index: int) -> str:
        file, name = Path(self.files[self.file_N[index]]), self.names[index]
        return f"{file.parent if name.startswith(f'/{file.name}/') else file}{name}"

    def label(self, index: int) -> int:
        return int(self.label_N[index])

    def notes(self) -> tuple[str, ...]:
        count, first = self.left_out
        return (f"{counted(count, 'picture')} of the shards left out, such as {first}: {KEYS}",) if count else ()

    def open(self, index: int) -> BinaryIO:
        size = int(self.size_N[index])
        with open(self.files[self.file_N[index]], "rb") as file:
            file.seek(int(self.offset_N[index]))
            data = file.read(size)
        if len(data) < size:
            raise OSError(f"{self.name(index)} ends early: {len(data)} of {size} bytes")
        return io.BytesIO(data)

    def identity(self) -> dict[str, Any]:
        """That of the same images in an ImageFolder."""
        names = zip(self.names, self.label_N.tolist(), strict=True)
        sample = spread(range(len(self)), SMALL_DATA_SET)
        return identity_of(self.classes, self.square, names, (int(self.size_N[i]) for i in sample))


# ------------------------------------------------------------------------------------------------ ImageNet as distributed


def holds_imagenet(data: str) -> bool:
    """Whether a folder has ImageNet's training images as the one tar file that image-net.org gives."""
    return (Path(data) / TRAIN_TAR).is_file()


def imagenet_tars(data: str, split: str) -> TarImages:
    """ImageNet-1k from its tar files: one tar of a thousand class tars, and one of 50,000 validation images.

    Raises:
        UsageError: a file is missing or damaged, or is not what its name says.
    """
    folder = Path(data)
    return _training_tar(folder / TRAIN_TAR) if split == "train" else _validation_tar(folder)


def _training_tar(path: Path) -> TarImages:
    def build() -> _Index:
        rows: list[tuple[str, int, int, str]] = []
        outer = list(_entries(path))
        for entry in tqdm(outer, unit="class", desc=f"indexing {path.name}", disable=not sys.stderr.isatty()):
            wnid = Path(entry.name).stem
            if entry.name.endswith(".tar"):
                inner = _entries(path, entry)
                rows += [(f"/{wnid}/{Path(image.name).name}", image.offset, image.size, wnid) for image in inner]
        return _Index.of(sorted(row for row in rows if _is_image(row[0])))

    index = _cached([path], build)
    if not len(index.offset_N):
        raise UsageError(f"{path} holds no tar files of classes with images; download it again from image-net.org.")
    return _source([path], index)


def _validation_tar(folder: Path) -> TarImages:
    path, devkit = folder / VAL_TAR, folder / DEVKIT
    for file in (path, devkit):
        if not file.is_file():
            raise NoValidation(
                f"{folder} has {TRAIN_TAR} but not {file.name}; validation needs both {VAL_TAR} and {DEVKIT} (labels)."
            )
    wnids = _validation_wnids(devkit)

    def build() -> _Index:
        images = sorted(entry for entry in _entries(path) if _is_image(entry.name))
        if len(images) != len(wnids):
            raise UsageError(f"{path} has {len(images)} images, but {devkit} has labels for {len(wnids)}.")
        rows = [
            (f"/{wnid}/{Path(image.name).name}", image.offset, image.size, wnid)
            for image, wnid in zip(images, wnids, strict=True)
        ]
        return _Index.of(sorted(rows))

    return _source([path], _cached([path, devkit], build))


def _validation_wnids(devkit: Path) -> list[str]:
    """The class folder's name of each validation image, in the order of the images."""
    from scipy.io import loadmat

    try:
        with tarfile.open(devkit) as archive:
            data = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            truth, meta = data["ILSVRC2012_validation_ground_truth.txt"], data["meta.mat"]
            assert truth is not None and meta is not None
            numbers = [int(line) for line in truth.read().split()]
            synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
            leaf = synsets["num_children"] == 0
            wnid_of = dict(zip(synsets["ILSVRC2012_ID"][leaf].tolist(), synsets["WNID"][leaf].tolist(), strict=True))
            return [str(wnid_of[number]) for number in numbers]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise UsageError(f"{devkit} is not ImageNet's development kit, or is damaged ({error!r}).") from None


# ------------------------------------------------------------------------------------------------ WebDataset shards


def holds_shards(data: str) -> bool:
    """Whether a folder has tar files named for a split: train-0000.tar, imagenet1k-validation-00.tar, ..."""
    return Path(data).is_dir() and bool(_shards(Path(data), "train"))


def webdataset(data: str, split: str) -> TarImages:
    """WebDataset shards: tar files of KEY.jpg with KEY.cls (a number) or KEY.json ({"label": a number}).

    The names of the classes come from classes.json or classes.txt in the folder; without one they are the numbers.

    Raises:
        UsageError: there are no shards of the split, or an image has no label.
    """
    folder = Path(data)
    paths = _shards(folder, split)
    if not paths:
        raise NoValidation(f"{folder} has shards for training but none for {split} (such as {split}-0000.tar).")
    index = _cached(paths, lambda: _index_shards(paths))
    count = int(index.label_N.max()) + 1 if len(index.label_N) else 0
    if not count:
        why = f"; {KEYS}, so that {index.first_left} is none" if index.left else f" ({', '.join(EXTENSIONS)})"
        raise UsageError(f"{paths[0]} and the shards after it hold no images{why}.")
    names = _class_names(folder)
    if names and len(names) < count:
        raise UsageError(f"{folder} names {len(names)} classes, but its shards have labels up to {count - 1}.")
    return _source(paths, index, names or tuple(map(str, range(count))))


def _shards(folder: Path, split: str) -> list[Path]:
    wanted = ("train",) if split == "train" else ("val", "validation")
    matches = ((SHARD.search(path.name), path) for path in sorted(folder.glob("*.tar")))
    return [path for match, path in matches if match and match[1].lower() in wanted]


def _index_shards(paths: list[Path]) -> _Index:
    rows, numbers, labels, left_out = [], [], [], []
    for number, path in enumerate(tqdm(paths, unit="shard", desc="indexing", disable=not sys.stderr.isatty())):
        images: dict[str, Entry] = {}
        labels_of: dict[str, dict[str, Entry]] = {"cls": {}, "json": {}}
        for entry in _entries(path):
            key, _, extension = entry.name.rpartition("/")[2].partition(".")
            key = f"{entry.name.rpartition('/')[0]}/{key}"
            if f".{extension.lower()}" in EXTENSIONS:
                if key in images:
                    left_out.append(f"{path.name}/{images[key].name}")
                images[key] = entry
            elif _is_image(entry.name):
                left_out.append(f"{path.name}/{entry.name}")
            elif extension.lower() in labels_of:
                labels_of[extension.lower()][key] = entry
        # KEY.json often holds other things, and is read only where there is no KEY.cls
        files = labels_of["json"] | labels_of["cls"]
        found = {key: _label_in(path, entry) for key, entry in files.items() if key in images}
        if missing := sorted(images.keys() - found.keys()):
            raise UsageError(
                f'{path} has no label for {images[missing[0]].name}; it takes KEY.cls or KEY.json with "label".'
            )
        for key, entry in images.items():
            rows.append((f"/{path.name}/{entry.name}", entry.offset, entry.size, ""))
            numbers.append(number)
            labels.append(found[key])
    index = _Index.of(rows)
    file_N, label_N = np.asarray(numbers, np.uint16), np.asarray(labels, np.int32)
    first = left_out[0] if left_out else ""
    return index._replace(file_N=file_N, label_N=label_N, left=np.asarray(len(left_out)), first_left=first)


def _label_in(path: Path, entry: Entry) -> int:
    with open(path, "rb") as file:
        file.seek(entry.offset)
        text = file.read(entry.size).decode(errors="replace")
    try:
        label = int(json.loads(text)["label"]) if entry.name.lower().endswith(".json") else int(text)
    except (ValueError, KeyError, TypeError):
        label = -1
    if label < 0:
        raise UsageError(f"{path}: {entry.name} holds no label; it takes a whole number from 0.")
    return label


def _class_names(folder: Path) -> tuple[str, ...]:
    for name in ("classes.json", "classes.txt"):
        if (file := folder / name).is_file():
            return read_class_names(file)
    return ()


# ------------------------------------------------------------------------------------------------ the index of a tar file


class _Index(NamedTuple):
    """Where the images of some tar files lie; `label_N` counts `classes`, which may be empty; `left` other pictures are there."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    file_N: np.ndarray
    offset_N: np.ndarray
    size_N: np.ndarray
    label_N: np.ndarray
    left: np.ndarray = np.asarray(0)
    first_left: str = ""

    @classmethod
    def of(cls, rows: list[tuple[str, int, int, str]]) -> _Index:
        """Of one tar file, from (name, first byte, bytes, class) of each image."""
        names, offsets, sizes, of_class = zip(*rows, strict=True) if rows else ((), (), (), ())
        classes = tuple(sorted(set(of_class)))
        number = {name: label for label, name in enumerate(classes)}
        return cls(
            tuple(names),
            classes,
            np.zeros(len(names), np.uint16),
            np.asarray(offsets, np.int64),
            np.asarray(sizes, np.int64),
            np.asarray([number[name] for name in of_class], np.int32),
        )


def _source(paths: list[Path], index: _Index, classes: tuple[str, ...] = ()) -> TarImages:
    arrays = index.file_N, index.offset_N, index.size_N, index.label_N
    left_out = int(index.left), index.first_left
    return TarImages(tuple(map(str, paths)), index.names, *arrays, classes or index.classes, left_out)


def _entries(path: Path, within: Entry | None = None) -> Iterator[Entry]:
    """The files in an uncompressed tar file, or in one that lies within it.

    Raises:
        UsageError: it is compressed, damaged, or no tar file.
    """
    begin, where = (within.offset, f"{path}/{within.name}") if within else (0, str(path))
    try:
        with open(path, "rb") as file:
            window: Any = _Window(file, within) if within else file
            with tarfile.open(fileobj=window, mode="r:") as archive:
                for member in archive:
                    if member.isfile():
                        yield Entry(member.name, begin + member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"{where} cannot be read as an uncompressed tar file ({error}).") from None


class _Window(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, file: BinaryIO, part: Entry) -> None:
        self.file, self.part, self.position = file, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.part.size}[whence]
        self.position = start + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.part.size - self.position)
        self.file.seek(self.part.offset + self.position)
        data = self.file.read(left if size < 0 else min(size, left))
        self.position += len(data)
        return data


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def _cached(paths: list[Path], build: Callable[[], _Index]) -> _Index:
    """The index of these files, from the user's cache folder where it is there and they have not changed."""
    facts = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refocus-var" / f"tar-{key}.npz"
    try:
        with np.load(cache, allow_pickle=False) as stored:
            names, classes = (str(stored[name][()]).split(SEPARATOR) for name in ("names", "classes"))
            arrays = [stored[name] for name in ("file_N", "offset_N", "size_N", "label_N", "left")]
            first_left = str(stored["first_left"])
            return _Index(tuple(names), tuple(filter(None, classes)), *arrays)._replace(first_left=first_left)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        index = build()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(cache) as beside, open(beside, "wb") as file:
            entries: dict[str, Any] = {name: SEPARATOR.join(getattr(index, name)) for name in ("names", "classes")}
            np.savez(file, **(index._asdict() | entries))
    except OSError:
        pass  # without a cache folder the index is made again next time
    return index
