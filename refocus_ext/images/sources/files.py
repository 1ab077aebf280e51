"""Which files of a folder are pictures, and a count of what was left out.

Pictures are the regular files with a name of EXTENSIONS, in any letter case and at any depth. Links to files and folders are
followed, but a folder is read once, so that a link to a folder above it ends. Left out are hidden files and folders (names
that begin with a dot), folders and files that systems and tools leave behind, dangling links, and other kinds of files.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, features

from refocus_ext.errors import UsageError

# Those of torchvision's ImageFolder; then others that Pillow opens, some of them only if it was built so.
IMAGE_FOLDER = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FURTHER = (
    ".jfif",
    ".jpe",
    ".mpo",
    ".apng",
    ".gif",
    ".avif",
    ".jp2",
    ".jpx",
    ".j2k",
    ".pnm",
    ".pbm",
    ".pfm",
    ".tga",
    ".qoi",
    ".dib",
)
NEEDS = {".webp": "webp", ".avif": "avif", ".jp2": "jpg_2000", ".jpx": "jpg_2000", ".j2k": "jpg_2000"}


def _opened_by_pillow(extension: str) -> bool:
    built = extension not in NEEDS or bool(features.check(NEEDS[extension]))
    return built and extension in Image.registered_extensions()


EXTENSIONS = tuple(extension for extension in IMAGE_FOLDER + FURTHER if _opened_by_pillow(extension))
LEFTOVERS = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information", "icon\r", "__pycache__",
}  # fmt: skip
HIDDEN, LEFTOVER = "hidden", "left by tools"
LINK, TWICE, SPECIAL = "linked to nothing", "linked to a folder already read", "not regular"
BARE, BESIDE = "without extension", "beside the class folders"


def shown(name: str) -> str:
    """A file name that any terminal and file can take: what is no text or no printable character is written as \\x.."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class Found:
    """The pictures as (folder, name) in no order, and how many entries were left out, by kind."""

    pictures: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def in_words(left_out: Counter[str]) -> str:
    """'3 .txt, 1 .mov, 2 hidden'; '' if nothing was left out."""
    kinds = left_out.most_common(6)
    more = left_out.total() - sum(count for _, count in kinds)
    words = ", ".join([f"{count} {kind}" for kind, count in kinds] + ([f"{more} more"] if more else []))
    phone = any(kind in left_out for kind in (".heic", ".heif"))
    return words + ("; convert the HEIC pictures to JPEG to use them" if phone else "")


def find_pictures(folder: str | Path, *, deep: bool = True) -> Found:
    """The pictures in a folder and, if `deep`, in its subfolders.

    Raises:
        UsageError: a folder cannot be read.
    """
    found, waiting, links = Found(), [str(folder)], list[str]()
    read = {
        _identity(str(path)) for path in Path(folder).resolve().parents
    }  # a link to one of them would go in circles
    while waiting or links:  # links come last, so that a folder is read under its own name if it has one here
        here = waiting.pop() if waiting else links.pop(0)
        if (identity := _identity(here)) in read:
            found.left_out[TWICE] += 1
            continue
        read.add(identity)
        for entry in entries(here):
            if kind := left_out_kind(entry):
                found.left_out[kind] += 1
            elif not entry.is_dir():
                found.pictures.append((here, entry.name))
            elif deep:
                (links if entry.is_symlink() else waiting).append(entry.path)
    return found


def left_out_kind(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is neither a folder to read nor a picture; '' if it is one."""
    if entry.name.lower() in LEFTOVERS:
        return LEFTOVER
    if entry.name.startswith("."):
        return LEFTOVER if entry.name == ".DS_Store" or entry.name.startswith("._") else HIDDEN
    if entry.is_symlink() and not _exists(entry.path):
        return LINK
    if entry.is_dir():
        return ""
    if not entry.is_file():
        return SPECIAL
    extension = os.path.splitext(entry.name)[1]
    return "" if extension.lower() in EXTENSIONS else shown(extension.lower()) or BARE


def _identity(folder: str) -> tuple[int, int]:
    """What two paths to one folder have in common."""
    where = os.stat(folder)
    return where.st_dev, where.st_ino


def _exists(path: str) -> bool:
    try:
        return bool(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:  # nothing there, or links that lead to one another
        return False


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder by name.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            yield from sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"the folder {shown(folder)} cannot be read ({error.strerror}); change its permissions."
        ) from None
