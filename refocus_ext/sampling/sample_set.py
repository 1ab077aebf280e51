"""Sets of images for FID: drawn in batches by one process or many, saved batch by batch, and resumable.

Batch b holds images b*B .. b*B + B-1 whatever the number of processes, which take turns; so the set does not depend on that number.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.progress import Progress
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.npz import read_made_by, write_npz
from refocus_ext.images.picture import save_png
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.atomic import remove_torn, save_json, written_beside

# Draws the images from number `first` on, one for each label: (B,H,W,3) uint8.
Draw = Callable[[int, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """The contents of a set. `identity` is everything the images depend on, JSON-serializable; `labels` has one entry per image."""

    labels: Sequence[int]
    batch: int
    size: int  # pixels
    seed: int
    identity: dict[str, Any]

    @property
    def batches(self) -> int:
        return math.ceil(len(self.labels) / self.batch)

    def numbers(self, batch: int) -> range:
        """The images of a batch."""
        return range(batch * self.batch, min((batch + 1) * self.batch, len(self.labels)))


class Parts:
    """The finished batches of a set, in a folder that belongs to one plan.

    Raises:
        UsageError: the folder belongs to another plan, or to something else.
    """

    CONFIG = "sample.json"

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; choose another name.")
        file = folder / self.CONFIG
        if file.is_file():
            check_identity(folder, json.loads(file.read_text()), plan.identity)
        elif folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(f"{folder} holds files but no set of images; choose an empty or new folder.")

    def open(self) -> None:
        """Makes the folder; called by one process before the others."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_torn(self.folder)
            save_json(self.folder / self.CONFIG, self.plan.identity)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder} ({error.strerror}); choose another folder.") from None

    def missing(self) -> list[int]:
        """The batches that are still to be drawn."""
        return [batch for batch in range(self.plan.batches) if not self.has(batch)]

    def has(self, batch: int) -> bool:
        raise NotImplementedError

    def keep(self, batch: int, images: np.ndarray) -> None:
        raise NotImplementedError


def check_identity(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises a UsageError that names the differences, unless both are equal."""
    ours = json.loads(json.dumps(ours))
    changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if changed:
        shown = " and ".join(f"{key} = {_short(theirs.get(key))}, not {_short(ours.get(key))}" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UsageError(
            f"{path} was started with {shown}{more}; choose another name, or remove it to start a new one."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"


class NpyParts(Parts):
    """One array file per batch, to be joined into an npz."""

    def path(self, batch: int) -> Path:
        return self.folder / f"part-{batch:06d}.npy"

    def has(self, batch: int) -> bool:
        return self.path(batch).is_file()

    def keep(self, batch: int, images: np.ndarray) -> None:
        with written_beside(self.path(batch)) as beside, open(beside, "wb") as file:
            np.save(file, images)

    def join(self, path: Path) -> None:
        """Writes the npz, shuffled by the plan's seed.

        Raises:
            RunFailed: a part is missing, for example because the nodes do not share the folder.
        """
        if missing := self.missing():
            raise RunFailed(
                f"{self.folder} lacks {len(missing)} of {self.plan.batches} parts; several nodes must share that folder."
            )
        count = len(self.plan.labels)
        order = np.random.default_rng(stream_seed(self.plan.seed, Stream.SET_SHUFFLE, 0)).permutation(count)
        labels = np.asarray(self.plan.labels, dtype=np.int64)[order]
        shape = (count, self.plan.size, self.plan.size, 3)
        write_npz(path, self._images(order), shape, labels, self.plan.identity)

    def _images(self, order: np.ndarray) -> Iterator[np.ndarray]:
        for number in order.tolist():
            batch, offset = divmod(number, self.plan.batch)
            yield np.load(self.path(batch), mmap_mode="r")[offset]


class PngParts(Parts):
    """One PNG per image, named by its number and label: 000012-class207.png."""

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}-class{self.plan.labels[number]}.png"

    def has(self, batch: int) -> bool:
        return all(self.path(number).is_file() for number in self.plan.numbers(batch))

    def keep(self, batch: int, images: np.ndarray) -> None:
        for number, image in zip(self.plan.numbers(batch), images, strict=True):
            save_png(self.path(number), Image.fromarray(image))


def draw_set(parts: Parts, draw: Draw, world: World) -> int:
    """Draws the missing batches; returns 0 when the set is complete, 130 or 143 after an interruption.

    Raises:
        RunFailed: the disk is full or not writable; existing files are kept.
    """
    todo = parts.missing()
    world.barrier()  # no process writes before all have read the folder
    if world.main:
        parts.open()
        if len(todo) < parts.plan.batches:
            print(f"resuming: {parts.plan.batches - len(todo)} of {parts.plan.batches} batches are done")
    world.barrier()
    mine, rounds = todo[world.rank :: world.size], math.ceil(len(todo) / world.size)
    progress = Progress(0, rounds, parts.plan.batch * world.size, quiet=not world.main, unit="batch")
    with Interruption("saving at the end of this batch") as interruption:
        for done in range(rounds):
            for batch in mine[done : done + 1]:
                _draw_batch(parts, draw, batch)
            progress.update(done + 1, {})
            code = interruption.agreed(world)
            if code and done + 1 < rounds:
                progress.close()
                if world.main:
                    print(f"stopped; {len(parts.missing())} batches are missing; rerun the same command to resume")
                return code
    progress.close()
    return 0


def _draw_batch(parts: Parts, draw: Draw, batch: int) -> None:
    numbers = parts.plan.numbers(batch)
    images = draw(numbers.start, [parts.plan.labels[number] for number in numbers])
    try:
        parts.keep(batch, images)
    except OSError as error:
        raise RunFailed(
            f"{parts.folder} could not be written ({error.strerror}); free some space and rerun the same command to resume."
        ) from error


def npz_parts(path: Path, plan: Plan) -> NpyParts | None:
    """The parts of a set in `path`.parts; None if `path` exists and was drawn by the same plan.

    Raises:
        UsageError: `path` or its parts are of another set.
    """
    if not path.exists():
        return NpyParts(path.with_name(f"{path.name}.parts"), plan)
    made_by = read_made_by(path)
    if made_by is None:
        raise UsageError(f"{path} exists and was not drawn by this command; choose another name.")
    check_identity(path, made_by, plan.identity)
    return None


def remove_parts(path: Path, plan: Plan) -> None:
    """Removes the parts of a set that is joined already, if its command was killed before it could."""
    folder = path.with_name(f"{path.name}.parts")
    with contextlib.suppress(UsageError):  # another set's
        if (folder / NpyParts.CONFIG).is_file():
            shutil.rmtree(NpyParts(folder, plan).folder)


def write_npz_set(path: Path, plan: Plan, draw: Draw, world: World) -> int:
    """The whole set as `path`; its parts are in `path`.parts until then.

    Raises:
        UsageError: `path` or its parts are of another set.
    """
    parts = npz_parts(path, plan)
    if parts is None:
        if world.main:
            remove_parts(path, plan)
        world.say(f"{path} already exists, drawn with these options; nothing to do")
        return 0
    code = draw_set(parts, draw, world)
    world.barrier()
    if code == 0 and world.main:
        print(f"joining {plan.batches} parts")
        try:
            parts.join(path)
        except OSError as error:
            raise RunFailed(f"{path} could not be written ({error.strerror}); its parts are intact.") from error
        shutil.rmtree(parts.folder)
        print(f"{path}: {len(plan.labels)} images of {plan.size} px, shuffled, {path.stat().st_size / 2**20:.1f} MiB")
    return code


def write_png_set(folder: Path, plan: Plan, draw: Draw, world: World) -> int:
    """The whole set as PNG files."""
    parts = PngParts(folder, plan)
    code = draw_set(parts, draw, world)
    if code == 0 and world.main:
        print(f"{folder}: {len(plan.labels)} PNG files of {plan.size} px")
    return code
