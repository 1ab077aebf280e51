"""ADM's form of a set of images: an npz with arr_0 (N,H,W,3) uint8, written in a stream so that it never fills memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refocus_ext.files import written_beside


def write_npz(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray,
    made_by: dict[str, Any],
) -> None:
    """Writes N images (H,W,3) uint8 as arr_0 and their labels as arr_1, whole or not at all.

    Args:
        shape: (N,H,W,3).
        made_by: JSON-able; kept as the archive's comment, where `read_made_by` finds it and NumPy does not look.
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
        archive.comment = json.dumps(made_by).encode()


def read_made_by(path: Path) -> dict[str, Any] | None:
    """What `write_npz` noted; None for an npz of other origin, or a file that is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.comment)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
