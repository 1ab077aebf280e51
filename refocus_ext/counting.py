"""Counts in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, nouns: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "image"), counted(1000, "image"), counted(2, "class", "classes")
    ('1 image', '1,000 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
