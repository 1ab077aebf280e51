"""Class names of a student: from its run, from a file, or ImageNet's; and labels for user-given names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from refocus_ext.errors import UsageError

IMAGENET_CLASSES = 1000
FIRST_WNID, LAST_WNID = "n01440764", "n15075141"  # of ImageNet-1k in the order of its folders


def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet-1k by label, as torchvision's weights carry them."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names by label: a JSON list, or a text file of one name per line.

    Raises:
        UsageError: the file is missing, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError):
        raise UsageError(f"{path} cannot be read as class names; give a JSON list, or one name per line.") from None
    if not names or isinstance(names, dict) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} holds no class names; give a JSON list of strings, or one name per line.")
    return tuple(name.strip() for name in names)


def check_class_map(file: Path, classes: Sequence[str]) -> None:
    """Raises UsageError if the run that wrote `file` numbered its classes otherwise: its labels would change their meaning."""
    if not file.is_file():
        return
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{file} cannot be read as class names; restore it, or start a new run.") from None
    if list(classes) == theirs:
        return
    raise UsageError(
        f"{file.parent} was begun on other classes ({_difference(classes, theirs)}), so that labels would change their meaning; "
        "restore the data, or start a new run in another folder."
    )


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """'it has 2 that the data lacks, such as cat; the data has 1 that it lacks, such as dog'."""
    lost = [name for name in theirs if name not in set(ours)]
    new = [name for name in ours if name not in set(theirs)]
    parts = [f"it has {len(lost)} that the data lacks, such as '{lost[0]}'"] if lost else []
    parts += [f"the data has {len(new)} that it lacks, such as '{new[0]}'"] if new else []
    return "; ".join(parts) or "in another order"


def choose_class_names(given: Path | None, beside: Path, num_classes: int) -> tuple[str, ...]:
    """The names of a student's classes, empty if there are none. There may be fewer names than classes.

    Args:
        given: a file of names, or None.
        beside: classes.json of the student's folder, which may be missing.

    Raises:
        UsageError: a file is unreadable, or names too many classes.
    """
    path = given or (beside if beside.is_file() else None)
    names = read_class_names(path) if path else ()
    if len(names) > num_classes:
        raise UsageError(
            f"{path} names {len(names)} classes, but the student has {num_classes}; give a file with its names."
        )
    folders_of_imagenet = len(names) == IMAGENET_CLASSES and (names[0], names[-1]) == (FIRST_WNID, LAST_WNID)
    if num_classes == IMAGENET_CLASSES and (not names or folders_of_imagenet):
        return imagenet_names()
    return names


ALL_SHOWN = 30  # a list of at most so many names is told whole


def label_of(word: str, names: Sequence[str], num_classes: int) -> int:
    """The label of a number, of a name (case-insensitive), or of 'none', which means no class.

    Raises:
        UsageError: there is no such class; the closest names are suggested.
    """
    word = _tidy(word)
    if word.lower() == "none":
        return num_classes
    # ImageNet has a Cardigan (the dog) and a cardigan: an exact match of the case comes first.
    exact = [label for label, name in enumerate(names) if name == word]
    matches = exact or [label for label, name in enumerate(names) if name.lower() == word.lower()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"class '{word}' is the name of labels {' and '.join(map(str, matches))}; give the number.")
    if word.isascii() and word.isdigit():
        if int(word) < num_classes:
            return int(word)
        raise UsageError(f"class {word} is out of range; the classes are numbered 0 to {num_classes - 1}.")
    if not names:
        raise UsageError(
            f"class '{word}' is not a number, and this student's classes have no names; give numbers from 0 to "
            f"{num_classes - 1}, or a file of their names."
        )
    raise UsageError(f"there is no class '{word}'{_suggestion(word, names)}")


def _suggestion(word: str, names: Sequence[str]) -> str:
    lower = {name.lower(): name for name in names}
    close = [lower[name] for name in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.6)]
    close = close or [name for key, name in lower.items() if word.lower() in key][:3]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    shown = names if len(names) <= ALL_SHOWN else names[:5]
    quoted = ", ".join(f"'{name}'" for name in shown)
    return f"; the names are {quoted}{', ...' if len(names) > len(shown) else ''}."


def labels_of(words: str, names: Sequence[str], num_classes: int) -> list[int]:
    """Labels of a comma-separated list such as '207,golden retriever'. A name may contain commas: the longest name that the
    list has at a place is meant.

    Raises:
        UsageError: an entry is not a class, or the list is empty.
    """
    parts = words.split(",")
    if not any(part.strip() for part in parts):
        raise UsageError("no classes are given; give numbers or names, separated by commas.")
    with_commas = {name.lower() for name in names if "," in name}
    most = max((name.count(",") for name in with_commas), default=0)
    labels, first = [], 0
    while first < len(parts):
        ends = range(min(len(parts), first + most + 1), first + 1, -1)
        end = next((end for end in ends if _tidy(",".join(parts[first:end])).lower() in with_commas), first + 1)
        word, first = ",".join(parts[first:end]), end
        if word.strip():
            labels.append(label_of(word, names, num_classes))
    return labels


def _tidy(word: str) -> str:
    return word.strip().strip("\"'")


def name_of(label: int, names: Sequence[str], num_classes: int) -> str:
    """The caption of a label."""
    if label == num_classes:
        return "no class"
    return names[label] if label < len(names) else f"class {label}"
