"""results.json of an ablation: what was measured of every row and seed, with the budget they were trained under. Files of several
machines, or of runs that are deleted, make one report."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refocus_ext.errors import UsageError
from refocus_ext.evidence.ablation.options import AblateOptions
from refocus_ext.options.presets import preset
from refocus_ext.storage.atomic import save_json
from refocus_ext.tokenizer.options import TokenizerOptions

FILE = "results.json"
BUDGET = (
    "preset",
    "data",
    "tokenizer",
    "depth",
    "tokenizer_steps",
    "distill_steps",
    "tokenizer_options",
    "distill_options",
    "points",
)
Numbers = dict[str, Any]


def budget_of(options: AblateOptions) -> Numbers:
    """The options that all rows of one comparison share, with those of stage 1 whose default has changed; they stand beside
    `tokenizer_options` and not in it. A given tokenizer has its own.

    Raises:
        UsageError: a wrong value of one of them.
    """
    stage, fields = preset(options.preset, "tokenizer"), TokenizerOptions.fields()
    usual = {name: stage.get(name, fields[name].default) for name in TokenizerOptions.earlier()}
    try:
        return _spelt_out({name: getattr(options, name) for name in BUDGET}, usual)
    except (argparse.ArgumentError, ValueError) as error:  # ValueError: a quote that does not end
        raise UsageError(f"'{options.tokenizer_options}': {error}.") from None


def _spelt_out(budget: Numbers, usual: Numbers) -> Numbers:
    """A budget with the options of stage 1 whose default has changed, `usual` where it has none of them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, value in usual.items():
        kind = TokenizerOptions.fields()[name].type or str
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=budget.get(name, value))
    found, others = parser.parse_known_args(shlex.split(str(budget.get("tokenizer_options") or "")))
    changed = {} if budget.get("tokenizer") else vars(found)
    return budget | {"tokenizer_options": shlex.join(others)} | changed


def budget_differences(ours: Numbers, theirs: Numbers) -> Iterator[tuple[str, Any, Any]]:
    """Name, our value and theirs, where two budgets differ. Data and tokenizer may lie elsewhere on another machine: the last
    part of their path counts. What files from before an option lack is what held then."""
    theirs = _spelt_out({"tokenizer": "", **theirs}, TokenizerOptions.earlier())
    for name, value in ours.items():
        other = theirs.get(name)
        if (Path(value).name != Path(str(other)).name) if name in ("data", "tokenizer") else (value != other):
            yield name, "none" if value == "" else value, "none" if other == "" else other


class OtherBudget(UsageError):
    """Rows of another budget. Where it differs in options of stage 1 whose default has changed alone, `words` are those options
    as it has them, else ''."""

    def __init__(self, message: str, differences: Sequence[tuple[str, Any, Any]]) -> None:
        super().__init__(message)
        known = {name for name, *_ in differences} <= TokenizerOptions.earlier().keys()
        pairs = [f"--{name.replace('_', '-')} {theirs}" for name, _, theirs in differences]
        self.words = " ".join(pairs) if known else ""


class Results:
    """The numbers of each row by seed, of this call and of files of earlier ones; written after every row.

    Args:
        known: files that other calls wrote, here or on other machines.

    Raises:
        UsageError: a file is none of `ablate`, or (OtherBudget) its rows have another budget or number of images.
    """

    def __init__(self, options: AblateOptions, known: Sequence[str]) -> None:
        self.file = Path(options.out) / FILE
        self.head: Numbers = {"budget": budget_of(options), "images": options.images}
        self.rows: dict[str, dict[int, Numbers]] = {}
        self.known: set[tuple[str, int]] = set()
        for name in known:
            self.known |= self._take(self._read(Path(name)))
        if self.file.is_file():  # of an earlier call with other rows: kept, and measured again where asked for
            with contextlib.suppress(UsageError):
                self._take(self._read(self.file))

    def has(self, row: str, seed: int) -> bool:
        """Whether a file of an earlier call has it."""
        return (row, seed) in self.known

    def add(self, row: str, seed: int, numbers: Numbers) -> None:
        """Adds one run and writes the file."""
        self.rows.setdefault(row, {})[seed] = numbers
        self.write()

    def write(self) -> None:
        save_json(self.file, {**self.head, "rows": self.rows})

    def of(self, rows: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Numbers]]:
        """Every row's runs in the order of the seeds."""
        return {row: [self.rows[row][seed] for seed in seeds] for row in rows}

    def _take(self, rows: Mapping[str, Mapping[str, Numbers]]) -> set[tuple[str, int]]:
        taken = {(row, int(seed)): numbers for row, seeds in rows.items() for seed, numbers in seeds.items()}
        for (row, seed), numbers in taken.items():
            self.rows.setdefault(row, {}).setdefault(seed, numbers)
        return set(taken)

    def _read(self, file: Path) -> Mapping[str, Mapping[str, Numbers]]:
        try:
            found = json.loads(file.read_text())
            rows: Mapping[str, Mapping[str, Numbers]] = found["rows"]
            theirs = {**found["budget"], "images": found["images"]}
        except OSError as error:
            raise UsageError(f"{file} cannot be read ({error.strerror}); give a results.json.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is no results.json of `ablate`.") from error
        if different := list(budget_differences(self.head["budget"] | {"images": self.head["images"]}, theirs)):
            name, ours, other = different[0]
            message = (
                f"{file} has rows with {name} = {other}, this call has {ours}; rows must be compared under one budget."
            )
            raise OtherBudget(message, different)
        return rows
