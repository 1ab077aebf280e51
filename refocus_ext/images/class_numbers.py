"""Class numbers of a larger list: the folders of a subset keep the labels that they have in it, such as ImageNet's by wnid."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import FIRST_WNID, IMAGENET_CLASSES, LAST_WNID
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.parts import Renumbered

IMAGENET = "imagenet"
WNID = re.compile(r"n\d{8}")
TIMMS = "data/_info/imagenet_synsets.txt"  # of the package timm: the 1000 wnids, sorted, which is their order by label


@dataclass(frozen=True)
class OfList(Renumbered):
    """The images of a source whose classes have their numbers in a larger list."""

    def identity(self) -> dict[str, Any]:
        """That of the images as they are: a token cache holds no labels, so it serves every numbering."""
        return self.inner.identity()


def renumbered(source: ImageSource, classes: Sequence[str]) -> OfList:
    """The source with the labels that its classes have in the list `classes`.

    Raises:
        UsageError: the list lacks one of them, or has a name twice.
    """
    number = {name: label for label, name in enumerate(classes)}
    if len(number) < len(classes):
        twice = next(name for label, name in enumerate(classes) if number[name] != label)
        raise UsageError(f"the list of classes has '{twice}' twice; a class has one number.")
    if missing := [name for name in source.classes if name not in number]:
        raise UsageError(
            f"the list of {len(classes)} classes (the first is '{classes[0]}') lacks {len(missing)} of the data's "
            f"{len(source.classes)}, such as '{missing[0]}'; name the folders as the list does, or use the data's own numbers."
        )
    return OfList(source, tuple(classes), tuple(number[name] for name in source.classes))


def numbers_in_use(images: ImageSource) -> list[int]:
    """The labels of the data's own class folders."""
    return sorted(images.numbers) if isinstance(images, OfList) else list(range(len(images.classes)))


def digest_of(classes: Sequence[str]) -> str:
    """sha256 of a list of classes, in their order."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()


def class_list(word: str) -> tuple[str, ...]:
    """Names of class folders in the order of their labels: "imagenet" for ImageNet's 1000 wnids, or those in a file.

    Args:
        word: a file is a JSON list, Keras's imagenet_class_index.json, or text with a name in each line; of a line that begins
            with a wnid (as in LOC_synset_mapping.txt) only that counts.

    Raises:
        UsageError: the list is not there or cannot be read.
    """
    return imagenet_wnids() if word == IMAGENET else _listed(Path(word))


def imagenet_wnids() -> tuple[str, ...]:
    """The wnids of ImageNet-1k by label, as the package timm carries them.

    Raises:
        UsageError: timm is not installed, or has another list.
    """
    spec = importlib.util.find_spec("timm")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    wnids = _listed(Path(folders[0]) / TIMMS) if folders and (Path(folders[0]) / TIMMS).is_file() else ()
    if len(wnids) != IMAGENET_CLASSES or (wnids[0], wnids[-1]) != (FIRST_WNID, LAST_WNID):
        raise UsageError(
            "the list of ImageNet's 1000 wnids comes with the package timm, which is not installed here; give a file of them "
            "instead, one in each line, in the order of their labels (sorted)."
        )
    return wnids


def _listed(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
        if isinstance(content, dict):
            content = [content[str(label)][0] for label in range(len(content))]
        names = [str(name).strip() for name in content if str(name).strip()]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        names = []
    if not names:
        raise UsageError(
            f"{path} cannot be read as a list of class folders; give one name in each line, in the order of their labels."
        )
    return tuple(name.split()[0] if WNID.match(name) else name for name in names)


def are_wnids(classes: Sequence[str]) -> bool:
    """Whether all class folders are named by ImageNet's wnids."""
    return bool(classes) and all(WNID.fullmatch(name) for name in classes)
