"""ADM's format for a set of images: an npz with arr_0 (N,H,W,3) uint8, written as a stream to save memory."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.storage.atomic import written_beside

MADE_BY = "made_by.json"  # in the archive, if it does not fit into its comment


class NpzImages:
    """arr_0 of an npz, read as a stream, compressed or not: only one batch is in memory.

    Raises:
        UsageError: arr_0 is not (N,H,W,3) uint8, or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, ""
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
            shape, fortran, dtype = _read_header(entry)
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran or 0 in shape:
            raise UsageError(
                f"{path} has arr_0 of shape {shape} and type {dtype}; it must be images (N,H,W,3) of uint8."
            )
        self.count, self.size = shape[0], (shape[1], shape[2])
        self.labels = self._labels()

    def _labels(self) -> np.ndarray | None:
        """arr_1, if it holds one whole number per image."""
        labels = _array(self.path, "arr_1")
        whole = labels is not None and labels.shape == (self.count,) and labels.dtype.kind in "iu"
        return labels if whole else None

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
        """See `ImageSet`. Every process reads the whole stream, which is fast compared with Inception.

        Raises:
            RunFailed: the file is damaged.
        """
        image_bytes = self.size[0] * self.size[1] * 3
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as entry:
                _read_header(entry)
                for number, first in enumerate(range(0, self.count, size)):
                    count = min(size, self.count - first)
                    data = entry.read(count * image_bytes)
                    if len(data) < count * image_bytes:
                        raise EOFError("it ends early")
                    if number % processes == rank:
                        yield np.frombuffer(data, np.uint8).reshape(count, *self.size, 3)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RunFailed(
                f"{self.path} could not be read to its end ({error}); copy it again, or draw it again."
            ) from error


def write_npz(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray,
    made_by: dict[str, Any],
) -> None:
    """Writes N images (H,W,3) uint8 as arr_0 and their labels as arr_1, completely or not at all.

    Args:
        shape: (N,H,W,3).
        made_by: JSON-serializable; stored as the archive's comment, or where that is too long as a member. `read_made_by` reads
            it, and NumPy ignores it.
    """
    with written_beside(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(entry, header)
            written = 0
            for image in images:
                assert image.shape == shape[1:] and image.dtype == np.uint8
                entry.write(np.ascontiguousarray(image).tobytes())
                written += 1
            assert written == shape[0]
        with archive.open("arr_1.npy", "w") as entry:
            np.lib.format.write_array(entry, labels)
        record = json.dumps(made_by).encode()
        if len(record) <= zipfile.ZIP_MAX_COMMENT:
            archive.comment = record
        else:
            archive.writestr(MADE_BY, record)


def read_made_by(path: Path) -> dict[str, Any] | None:
    """The record of `write_npz`; None for an npz from elsewhere, or another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(MADE_BY) if MADE_BY in archive.namelist() else archive.comment)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


# ------------------------------------------------------------------------------------------------ npz


def has_array(path: Path, name: str) -> bool:
    """Whether an npz holds the array `name`.

    Raises:
        UsageError: the file is missing, or is not an npz.
    """
    if not path.is_file():
        raise UsageError(f"{path} is neither a file nor a folder; give an npz or a folder of images.")
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{name}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise UsageError(
            f"{path} is not an npz file, or is damaged; give another file, or a folder of images."
        ) from None


def _read_header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """(shape, Fortran order, type) of the array whose bytes follow."""
    version = np.lib.format.read_magic(entry)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(entry)


def _array(path: Path, name: str) -> np.ndarray | None:
    """A small array of an npz; None if the npz has no array of this name.

    Raises:
        UsageError: it is damaged, or a pickle.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name] if name in arrays.files else None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        raise UsageError(f"{name} in {path} cannot be read as an array of numbers; copy the file again.") from None
