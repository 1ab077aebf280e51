"""Drawn pictures of letters and words: endless images with labels, drawn from (seed, epoch, index)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from refocus_ext.errors import UsageError
from refocus_ext.images.letters.drawing import VERSION, Style, draw, draw_scene
from refocus_ext.images.letters.fonts import SEEN, UNSEEN, digest, fonts_of_folder, matplotlib_fonts
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import Stream, stream_seed

WORDS = (
    "ALP", "BOX", "CUP", "DEN", "EGG", "FIG", "GUM", "HAT", "INK", "JAR", "KEY", "LOG", "MAP",
    "NUT", "OAK", "PIE", "QUO", "RAY", "SKY", "TUB", "URN", "VAN", "WIG", "XIS", "YEW", "ZIP",
)  # fmt: skip
LONG_WORDS = (
    "ACORN", "BADGE", "CANOE", "DRUMS", "EAGLE", "FLUTE", "GRAPE", "HOUSE", "IGLOO", "JEWEL", "KAYAK", "LEMON", "MAPLE",
    "NIGHT", "OCEAN", "PIANO", "QUEEN", "RIVER", "SNAKE", "TIGER", "UNCLE", "VIOLA", "WHALE", "XENON", "YACHT", "ZEBRA",
)  # fmt: skip


class Level(NamedTuple):
    """A kind of picture: its classes, its style, and what it is."""

    classes: tuple[str, ...]
    style: Style
    what: str


LEVELS = {
    "letters": Level(tuple(ascii_uppercase), Style((0.55, 0.8), 0.9), "one letter in two colours"),
    "letters-fine": Level(
        tuple(ascii_uppercase), Style((0.55, 0.8), 0.88, fine=True), "an outlined letter on a hatched ground"
    ),
    "words": Level(WORDS, Style((0.26, 0.36), 0.94), "a word of three letters"),
    "long-words": Level(LONG_WORDS, Style((0.16, 0.24), 0.94), "a word of five letters, for 128 pixels"),
}
UNSEEN_SUFFIX = "-unseen"
PER_CLASS = {"train": 200, "val": 20}
FILE_SIZE = 256  # pixels of a picture that is opened as a file


@dataclass(frozen=True)
class Letters(ImageSource):
    """Pictures of one level. An epoch has PER_CLASS of each class, and every epoch new ones.

    Args:
        level: a key of LEVELS.
        split: "train" or "val"; they draw from different seeds.
        fonts: paths.
        unseen: fonts that training never has.
    """

    level: str
    split: str
    fonts: tuple[str, ...]
    unseen: bool = False

    square = False
    drawn = True

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return LEVELS[self.level].classes

    def __len__(self) -> int:
        return PER_CLASS[self.split] * len(self.classes)

    def name(self, index: int) -> str:
        return f"{self.level}/{self.split}/{self.classes[self.label(index)]}/{index % PER_CLASS[self.split]}"

    def label(self, index: int) -> int:
        return index // PER_CLASS[self.split]

    def draw(self, index: int, size: int, seed: int, epoch: int) -> Image.Image:
        stream = Stream.LETTERS if self.split == "train" else Stream.HELD_OUT_LETTERS
        rng = np.random.default_rng(stream_seed(seed, stream, epoch, index))
        level = LEVELS[self.level]
        return draw(level.classes[self.label(index)], size, draw_scene(rng, self.fonts, level.style), level.style)

    def open(self, index: int) -> BinaryIO:
        """The picture of seed 0 and epoch 0 as PNG, for commands that read files."""
        file = io.BytesIO()
        self.draw(index, FILE_SIZE, 0, 0).save(file, "PNG")
        file.seek(0)
        return file

    def identity(self) -> dict[str, Any]:
        return {
            "images": len(self), "classes": len(self.classes), "drawn": self.level, "split": self.split, "version": VERSION,
            "fonts": [digest(path)[:16] for path in self.fonts],
        }  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        fonts = "fonts that training never has" if self.unseen else "fonts"
        what = LEVELS[self.level].what
        return (f"{self.level}: drawn pictures ({what}), {len(self.classes)} classes, {len(self.fonts)} {fonts}",)


def is_letters(data: str) -> bool:
    """Whether --data names drawn pictures."""
    return _parsed(data)[0] in LEVELS


def level_of(data: str) -> str:
    """The key of LEVELS in a --data that names drawn pictures."""
    return _parsed(data)[0]


def letters(data: str, split: str) -> Letters:
    """The pictures that --data names: LEVEL, LEVEL-unseen or LEVEL:FOLDER OF FONTS.

    Raises:
        UsageError: a folder has the same name, or the fonts are missing.
    """
    level, unseen, folder = _parsed(data)
    if Path(data).exists():
        raise UsageError(f"{data} names drawn pictures, but is also a path here; give ./{data} for it, or rename it.")
    fonts = fonts_of_folder(folder) if folder else matplotlib_fonts(UNSEEN if unseen else SEEN)
    return Letters(level, split, fonts, unseen)


def _parsed(data: str) -> tuple[str, bool, str]:
    """(level, whether in unseen fonts, folder of fonts)."""
    word, _, folder = data.partition(":")
    unseen = not folder and word.endswith(UNSEEN_SUFFIX)
    return word.removesuffix(UNSEEN_SUFFIX) if unseen else word, unseen, folder
