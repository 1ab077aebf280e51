"""Parsers of an option's text. Their names are what --help shows in the place of a value: INT, FLOAT, ..."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)
AUTO = 0  # the number that stands for "auto"


def int_list(text: str) -> tuple[int, ...]:
    """'1,2,3,4' (or with '_' or '-', as VAR writes patch_nums) -> (1, 2, 3, 4)."""
    return tuple(int(part) for part in re.split(r"[,_\- ]+", text.strip()))


def guidance_list(text: str) -> tuple[float, ...]:
    """'0,1.5,4' -> (0.0, 1.5, 4.0); a number that is given twice counts once."""
    parse = non_negative(float)
    return tuple(dict.fromkeys(parse(part) for part in text.split(",")))


def share(text: str) -> float:
    """A share of a whole: at least 0, less than 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; give at least 0 and less than 1, such as 0.05")
    return value


share.__name__ = "float"


def positive(kind: type[N]) -> Callable[[str], N]:
    """A parser of numbers > 0."""

    def parse(text: str) -> N:
        value = kind(text)
        if not 0 < value < math.inf:
            what = "greater than 0" if not value > 0 else "finite"
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    parse.__name__ = kind.__name__
    return parse


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    parse.__name__ = "int"
    return parse


def non_negative(kind: type[N]) -> Callable[[str], N]:
    """A parser of numbers >= 0."""

    def parse(text: str) -> N:
        value = kind(text)
        if not 0 <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is {'less than 0' if not value >= 0 else 'not finite'}")
        return value

    parse.__name__ = kind.__name__
    return parse


def number_or_auto(text: str) -> int:
    """A number > 0, or `AUTO` for 'auto'."""
    return AUTO if text == "auto" else positive(int)(text)


number_or_auto.__name__ = "int"
