"""Pictures that a user gives to the page, read as everywhere in this project."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.images.photographs import read_square

MOST_BYTES = 64 << 20  # of an uploaded file


def read_upload(path: str | None, size: int) -> Tensor:
    """The central square of an uploaded picture, (3,size,size) in [-1,1].

    Args:
        path: where the server has put the file; messages name the file alone.

    Raises:
        UsageError: there is no file, or it is not a picture that can be read.
    """
    if not path:
        raise UsageError("no picture is chosen; choose one first.")
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            return read_square(file, size, name)
    except OSError as error:
        raise UsageError(f"{name} is not there any more ({error.strerror}); choose it again.") from None
