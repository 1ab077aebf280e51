"""`status`: lists runs. Imports no torch and writes nothing into a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from refocus_ext.errors import UsageError, named
from refocus_ext.status.folders import is_run, runs_in
from refocus_ext.status.options import StatusOptions
from refocus_ext.status.page import Entry
from refocus_ext.status.run import NoRun, read_run
from refocus_ext.storage.results import results_file, write_numbers

RUNS = "runs"


def main(options: StatusOptions) -> int:
    """Runs the command; returns its exit code."""
    json_file = None
    if options.json:
        with named("--json"):
            json_file = results_file(options.json)
            if is_run(json_file.parent):
                raise UsageError(f"{json_file} would be in a run folder; choose another one.")
    try:
        while True:
            found = entries(options.runs, options.verify)
            print("\n\n".join("\n".join(entry.lines()) for entry in found) or nothing(), flush=True)
            if json_file:
                with named("--json"):
                    write_numbers(json_file, {"runs": [entry.to_dict() for entry in found]})
            if not options.watch:
                return 0
            time.sleep(options.watch)
            print(f"\n{'=' * 8} {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    except KeyboardInterrupt:
        print()
        return 0


def nothing() -> str:
    return f"There is no run in {RUNS}/; `bash run.sh tokenizer` begins one."


def entries(words: Sequence[str], verify: bool = False) -> list[Entry]:
    """The runs in these folders, each once; without any, those in runs/.

    Raises:
        UsageError: a word is no folder.
    """
    if not words:
        return [_entry(path, verify) for path in (runs_in(Path(RUNS)) if Path(RUNS).is_dir() else ())]
    found: dict[Path, Entry] = {}
    for word in words:
        if not Path(word).is_dir():
            raise UsageError(f"{word} is no folder; give a run folder or a folder of runs.")
        paths = list(runs_in(Path(word)))
        found |= {path.resolve(): _entry(path, verify) for path in paths}
        if not paths:
            found[Path(word).resolve()] = Entry(Path(word), None, "nor is there one in it")
    return list(found.values())


def _entry(path: Path, verify: bool) -> Entry:
    try:
        return Entry.of(read_run(path, time.time()), verify)
    except NoRun as error:
        return Entry(path, None, str(error))
    except OSError as error:
        return Entry(path, None, f"it cannot be read ({error.strerror})")
