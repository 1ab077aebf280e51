"""What the page offers, loaded when it is first chosen; the last two stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from patches.protocols import VQVAE
from refocus_ext.errors import UsageError
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.tokens.bare_tokenizer import open_tokenizer
from refocus_ext.tokens.trained_tokenizer import Tokenizer

DEMO = "the demo photographs"
KEPT = 2  # loaded models: as many as a comparison needs
RHO_MAX, RHO_SIZE = 12.0, 256  # the paper's largest radius, at its image size

M = TypeVar("M", Student, Tokenizer)


@dataclass(frozen=True)
class Coder:
    """What makes tokens of pictures: a VQVAE, the pyramid that its run records, and one that fits where it records none."""

    name: str
    model: Student | Tokenizer
    recorded: FocusPyramid | None
    pyramid: FocusPyramid

    @property
    def vae(self) -> VQVAE:
        return self.model.vae

    @property
    def trained_on(self) -> str:
        """The data of its run, as far as it is recorded: the last part of its path."""
        options = self.model.config.get("options") or {}
        return Path(options["data"]).name or DEMO if "data" in options else "data that its files do not name"

    @property
    def trained_with(self) -> str:
        """The blur of its training; "none" where the files record no pyramid, as upstream's."""
        return self.recorded.blur if self.recorded else "none"


class Models:
    """Students and tokenizers by name. Used by one thread at a time.

    Args:
        students, tokenizers: their paths by name.
    """

    def __init__(self, students: Mapping[str, Path], tokenizers: Mapping[str, Path], device: torch.device) -> None:
        self.students, self.tokenizers, self.device = dict(students), dict(tokenizers), device
        self._loaded: dict[Path, Student | Tokenizer] = {}  # the most recently used last

    @property
    def coders(self) -> list[str]:
        """The names of all that can make tokens of a picture."""
        return [*self.students, *(f"tokenizer {name}" for name in self.tokenizers)]

    def student(self, name: str) -> Student:
        """
        Raises:
            UsageError: it is not offered, or its files are damaged.
        """
        if name not in self.students:
            raise UsageError(f"{name} is no student of this page; choose one of {', '.join(self.students)}.")
        return self._load(self.students[name], lambda path: load_student(path, self.device))

    def coder(self, name: str) -> Coder:
        """
        Raises:
            UsageError: as `student`.
        """
        word = name.removeprefix("tokenizer ")
        if name not in self.students and word in self.tokenizers:
            tokenizer = self._load(self.tokenizers[word], lambda path: open_tokenizer(path, self.device))
            return Coder(name, tokenizer, tokenizer.pyramid, tokenizer.pyramid)
        student = self.student(name)
        return Coder(name, student, student.pyramid, student.pyramid or assumed_pyramid(student.image_size))

    def _load(self, path: Path, load: Callable[[Path], M]) -> M:
        if path not in self._loaded:
            while len(self._loaded) >= KEPT:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[path] = load(path)
        found = self._loaded[path] = self._loaded.pop(path)
        return found  # type: ignore[return-value]  # a path is loaded in one way only


def assumed_pyramid(image_size: int) -> FocusPyramid:
    """The paper's pyramid at another size: up to four states, the radius in proportion."""
    states = min(4, (image_size // 16).bit_length())
    return FocusPyramid(image_size=image_size, states=states, rho_max=RHO_MAX * image_size / RHO_SIZE)
