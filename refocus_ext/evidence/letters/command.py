"""`bash run.sh legibility`: measures pictures of letters, or trains the classifier that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from refocus_ext.counting import counted
from refocus_ext.engine.devices import pick_device
from refocus_ext.engine.progress import Progress
from refocus_ext.errors import UsageError, named
from refocus_ext.evidence.letters.measures import (
    LEAST,
    Batch,
    LetterScores,
    LetterSet,
    fresh_letters,
    letter_set,
)
from refocus_ext.evidence.letters.options import LegibilityOptions
from refocus_ext.evidence.letters.picture import draw_guidance, letters_picture
from refocus_ext.evidence.letters.reader import READ_AT, Reader, load_reader, save_reader
from refocus_ext.evidence.letters.reader_training import train_reader
from refocus_ext.evidence.letters.report import table
from refocus_ext.evidence.letters.spoiled import KINDS, SHUFFLED, spoil
from refocus_ext.images.picture import save_png
from refocus_ext.images.readers import open_samples
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_split
from refocus_ext.images.sources.letters import LEVELS, is_letters, level_of
from refocus_ext.sampling.alternating import alternating_samples
from refocus_ext.sampling.sampler import FOR_FID
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.results import results_file, write_numbers
from refocus_ext.tokenizer.prefixes import prefixes
from refocus_ext.tokens.trained_tokenizer import load_tokenizer

FRESH = "fresh letters"
V = TypeVar("V", str, int)


def main(options: LegibilityOptions) -> int:
    """Runs the command; returns its exit code."""
    check(options)
    device = pick_device(options.device)
    for name in ("json", "train", "picture"):
        if getattr(options, name):
            with named(f"--{name}"):
                results_file(getattr(options, name))
    if options.train:
        return train(options, device)
    what = next((name for name in ("student", "tokenizer", "samples") if getattr(options, name)), "spoiled")
    title, rows = {"student": of_student, "tokenizer": of_tokenizer, "samples": of_samples, "spoiled": of_spoiled}[
        what
    ](options, device)
    print(f"\n{title}\n\n" + "\n".join(table(rows)))
    if options.picture and options.student:
        draw_guidance(Path(options.picture), rows, options.cfg)
        print(f"\n{options.picture} shows the share that is read against recall, at each guidance")
    elif options.picture:
        save_png(Path(options.picture), letters_picture(level_of(options.data or "letters")))
        print(f"\n{options.picture} shows the kinds of letters and how they are spoiled")
    if options.json:
        with named("--json"):
            write_numbers(Path(options.json), {name: scores.values() for name, scores in rows.items()})
    return 0


def check(options: LegibilityOptions) -> None:
    """Raises UsageError where the options do not go together."""
    given = [name for name in ("student", "tokenizer", "samples", "train") if getattr(options, name)]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} are measured one at a time; omit one of them.")
    if options.data and not is_letters(options.data):
        raise UsageError(f"--data {options.data} names no drawn pictures; give one of {', '.join(LEVELS)}.")
    if options.picture and given and not options.student:
        raise UsageError(f"--picture shows spoiled letters; omit --{given[0]}, or --picture.")
    if options.picture and options.student and len(options.cfg) < 2:
        raise UsageError("--picture of a student shows it at several guidances; give them, such as --cfg 0,1.5,3,5.")
    if not options.student and options.given("cfg"):
        raise UsageError("--cfg is for the samples that are drawn of a --student; omit it.")
    if options.images < LEAST:
        raise UsageError(f"--images {options.images} are too few for precision and recall; give at least {LEAST}.")


def train(options: LegibilityOptions, device: torch.device) -> int:
    """Trains a reader, measures it on fresh letters and writes it."""
    level = level_of(options.data or "letters")
    print(f"training the reader of {level}, a classifier of its {len(LEVELS[level].classes)} classes, on {device}")
    reader = train_reader(level, device)
    for data in (level, f"{level}-unseen"):
        found = letter_set(
            reader, fresh_letters(find_split(data, "val"), reader.side, options.images, options.batch_size)
        )
        print(f"it reads {100 * found.legibility:.2f}% of {found.count} fresh pictures of {data}")
    save_reader(reader, Path(options.train))
    print(f"{options.train} has its weights ({Path(options.train).stat().st_size / 1000:.0f} kB)")
    return 0


class Judge:
    """The reader, and fresh letters of a size to compare with."""

    def __init__(self, options: LegibilityOptions, data: str, size: int, device: torch.device) -> None:
        self.options, self.data, self.size = options, data, size
        with named("--data"):
            self.source: ImageSource = find_split(data, "val")
        with named("--reader"):
            self.reader: Reader = load_reader(level_of(data), device, Path(options.reader) if options.reader else None)
        self.fresh = letter_set(self.reader, self.letters(FRESH, 0))

    def letters(self, name: str, number: int) -> Iterator[Batch]:
        """Fresh pictures, with a progress display."""
        options = self.options
        return shown(name, fresh_letters(self.source, self.size, options.images, options.batch_size, number), options)

    def scores(self, batches: Iterator[Batch]) -> LetterScores:
        return letter_set(self.reader, batches).against(self.fresh)

    def other_fresh(self) -> LetterScores:
        """The measures of fresh letters themselves: the best that samples can have."""
        return self.scores(self.letters(f"other {FRESH}", 1))


Result = tuple[str, dict[str, LetterScores]]


def of_spoiled(options: LegibilityOptions, device: torch.device) -> Result:
    """The measures of letters that are spoiled on purpose."""
    data = options.data or "letters"
    judge = Judge(options, data, options.image_size or READ_AT.get(level_of(data), 64), device)
    rows = {kind: judge.scores(spoil(kind, batch) for batch in judge.letters(kind, 1)) for kind in (*KINDS, SHUFFLED)}
    return f"{options.images} pictures of {data} at {judge.size} px, spoiled on purpose:", rows


def of_student(options: LegibilityOptions, device: torch.device) -> Result:
    """The measures of students' samples, drawn as for FID, at one guidance or several."""
    students = {}
    for word in options.student:
        with named("--student"):
            students[word] = load_student(word, device)
    data = options.data or same("data", {word: _trained_on(word, student) for word, student in students.items()})
    for word, student in students.items():
        check_classes(data, student.classes, word)
    size = same("image size", {word: student.image_size for word, student in students.items()})
    judge = Judge(options, data, size, device)
    short = len({Path(word).resolve().name for word in students}) == len(students)
    rows = {}
    for word, student in students.items():
        whose = Path(word).resolve().name if short else word
        for cfg in options.cfg:
            name = f"{whose}, cfg {cfg:g}"
            guidance = replace(FOR_FID, cfg=cfg)
            drawn = alternating_samples(student, options.images, options.batch_size, options.seed, guidance)
            rows[name] = judge.scores(shown(name, drawn, options))
    rows[FRESH] = judge.other_fresh()
    drawn_of = options.student[0] if len(students) == 1 else f"each of {len(students)} students"
    return f"{options.images} samples of {drawn_of}, asked for the classes of {data}:", rows


def _trained_on(word: str, student: Student) -> str:
    data = str(student.config.get("options", {}).get("data", ""))
    if not data:
        raise UsageError(f"--student {word} does not say which letters it was trained on; give --data.")
    return data


def same(what: str, values: Mapping[str, V]) -> V:
    """The value that all students have; raises UsageError where they differ."""
    (first, value), *others = values.items()
    for word, other in others:
        if other != value:
            raise UsageError(
                f"--student {word} has the {what} {other} and {first} has {value}; measure them by two calls."
            )
    return value


def of_tokenizer(options: LegibilityOptions, device: torch.device) -> Result:
    """The measures of held-out letters that a tokenizer has encoded and decoded, up to each focus state."""
    with named("--tokenizer"):
        tokenizer = load_tokenizer(Path(options.tokenizer), device)
        data = options.data or tokenizer.data("")
        if not is_letters(data):
            raise UsageError(
                f"{options.tokenizer} was not trained on letters; say with --data which letters to measure."
            )
    judge = Judge(options, data, tokenizer.pyramid.image_size, device)
    sides = tokenizer.vae.quantize.v_patch_nums
    last = [len(sides) - 1 if s is None else s for s in tokenizer.pyramid.last_scale_of_state(sides)]
    sets = [LetterSet(judge.reader) for _ in last]
    for image, label in judge.letters("decoded", 1):
        for found, decoded in zip(sets, prefixes(tokenizer.vae, image.to(device)), strict=True):
            found.update(decoded, label)
    names = [f"state {k}, {counted(sum(n * n for n in sides[: s + 1]), 'token')}" for k, s in enumerate(last, start=1)]
    rows = {name: found.against(judge.fresh) for name, found in zip(names, sets, strict=True)}
    return f"{options.images} held-out pictures of {data}, encoded and decoded by {options.tokenizer}:", rows | {
        FRESH: judge.other_fresh()
    }


def of_samples(options: LegibilityOptions, device: torch.device) -> Result:
    """The measures of a set of images with labels."""
    with named("--samples"):
        images = open_samples(options.samples, 1)
        if images.labels is None or images.size[0] != images.size[1]:
            raise UsageError(
                f"{options.samples} has no labels, or its images are not square; `bash run.sh sample --npz FILE` writes both."
            )
    data = options.data or "letters"
    judge = Judge(options, data, images.size[0], device)
    labels = torch.from_numpy(images.labels.astype("int64"))
    if int(labels.max()) >= len(judge.source.classes):
        raise UsageError(
            f"{options.samples} has the label {int(labels.max())}, but {data} has {len(judge.source.classes)} classes; give --data."
        )

    def batches() -> Iterator[Batch]:
        first = 0
        for pixels in images.batches(options.batch_size):
            image = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2) / 127.5 - 1
            yield image, labels[first : first + len(image)]
            first += len(image)

    rows = {"samples": judge.scores(batches()), FRESH: judge.other_fresh()}
    return f"{images.count} images of {options.samples}, as pictures of {data}:", rows


def check_classes(data: str, classes: Sequence[str], student: str) -> None:
    """Raises UsageError unless a student's classes are those of the drawn pictures."""
    if not is_letters(data):
        raise UsageError(f"--student {student} was trained on {data}; give one that was trained on letters, or --data.")
    ours = LEVELS[level_of(data)].classes
    if tuple(classes) != ours:
        raise UsageError(
            f"--student {student} has the classes {', '.join(classes[:3])}, .., and {data} has {', '.join(ours[:3])}, ..; give a "
            "student that was trained on it."
        )


def shown(name: str, batches: Iterator[Batch], options: LegibilityOptions) -> Iterator[Batch]:
    """The same batches, with a progress display."""
    print(name, flush=True)
    progress = Progress(0, -(-options.images // options.batch_size), options.batch_size, unit="batch")
    for number, batch in enumerate(batches, start=1):
        yield batch
        progress.update(number, {})
    progress.close()
