"""Counts and durations in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, nouns: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "image"), counted(1000, "image"), counted(2, "class", "classes")
    ('1 image', '1,000 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3723), duration(123)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
