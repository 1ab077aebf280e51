"""What looks wrong with a run, in sentences."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from refocus_ext.counting import counted, duration
from refocus_ext.engine.checkpoint_names import MANIFEST, NAME
from refocus_ext.status.run import Run
from refocus_ext.storage.atomic import sha256

MANY_TOKENS = 4  # side of a token map that has enough tokens, of one image, to judge it by its perplexity
LITTLE_SPACE = 1 << 30  # bytes, where there is no checkpoint yet that would show how many it needs


def warnings(run: Run, verify: bool = False) -> list[str]:
    """One sentence for each.

    Args:
        verify: read the newest checkpoint whole.
    """
    found = [*_life(run), *_collapsed(run), *_skipped(run), *_unvalidated(run), *_lost_records(run)]
    return [*found, *_damaged(run, verify), *_disk(run)]


def _life(run: Run) -> Iterator[str]:
    if run.seen is None:
        return
    silent = run.seen.silent_for(run.now)
    since = f"no sign of life for {duration(silent)} (process {run.seen.pid} on {run.seen.host})"
    if run.state == "no sign of life":
        yield f"{since}; see there whether it is alive before you resume it"
    elif run.state == "running" and run.seen.beats and silent > run.seen.patience():
        yield f"its process is there, but it has made no step for {duration(silent)}"


def _collapsed(run: Run) -> Iterator[str]:
    scales = collapsed_scales(run)
    if scales:
        names = ", ".join(map(str, scales))
        yield f"{'scale' if len(scales) == 1 else 'scales'} {names} collapsed: hardly any codes are in use"


def collapsed_scales(run: Run) -> list[int]:
    """Those that the run itself marked; of runs that do not mark them, those whose perplexity leaves no doubt."""
    values = run.records.validation
    marked = {int(name[15:]) for name in values if name.startswith("collapsed_scale") and name[15:].isdigit()}
    maps = run.options.get("patch_nums") or ()
    sides = enumerate(maps, start=1) if run.command == "tokenizer" else ()
    certain = {s for s, side in sides if side >= MANY_TOKENS and values.get(f"perplexity_scale{s}", 2.0) < 1.5}
    return sorted(marked | certain)


def _skipped(run: Run) -> Iterator[str]:
    if steps := run.records.skipped:
        yield f"{counted(len(steps), 'step')} skipped, the last at {steps[-1]}: loss or gradient was not finite"
    if broken := run.records.broken:
        yield f"{counted(broken, 'image')} could not be decoded and {'was' if broken == 1 else 'were'} replaced"


def _unvalidated(run: Run) -> Iterator[str]:
    due = first_validation(run)
    if run.records.validated is None and due and run.step > due:
        yield f"no validation yet, though the first was due at step {due}"


def first_validation(run: Run) -> int | None:
    """The step of the first validation; None if it cannot be told."""
    every, warm = run.options.get("picture_every"), run.options.get("warm_autoencoder", 0)
    if not isinstance(every, int) or not isinstance(warm, int) or every < 1 or run.options.get("only"):
        return None
    return min(run.steps, (warm // every + 1) * every)  # a tokenizer has no tokens until its autoencoder is warm


def _lost_records(run: Run) -> Iterator[str]:
    if run.saved is not None and (run.records.step or 0) < run.saved:
        ends = f"ends at step {run.records.step}" if run.records.step else "has no record"
        yield f"metrics.jsonl {ends}, before the checkpoint of step {run.saved}: records were lost"


def _damaged(run: Run, verify: bool) -> Iterator[str]:
    if run.checkpoint is not None and (why := damage(run.checkpoint, verify)):
        yield f"the newest checkpoint is damaged ({why}); the run would resume from an older one, or from the start"


def damage(checkpoint: Path, verify: bool) -> str:
    """What is wrong with a checkpoint, as a clause; "" if nothing is to be seen.

    Args:
        verify: read it whole; otherwise only its end, or its list of files, is looked at.
    """
    match = NAME.search(checkpoint.name)
    assert match is not None
    try:
        if checkpoint.is_dir():
            return _damage_of_shards(checkpoint, match[2], verify)
        if not zipfile.is_zipfile(checkpoint):  # what torch.save writes; a torn file lacks the end
            return "its end is missing"
        return "its contents do not match its checksum" if verify and sha256(checkpoint)[:16] != match[2] else ""
    except FileNotFoundError:  # the run has replaced it in the meantime
        return ""
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _damage_of_shards(folder: Path, digest: str, verify: bool) -> str:
    manifest = folder / MANIFEST
    if not manifest.is_file() or sha256(manifest)[:16] != digest:
        return "its list of files is damaged"
    for name, known in json.loads(manifest.read_text()).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if verify and sha256(folder / name) != known:
            return f"{name} does not match its checksum"
    return ""


def _disk(run: Run) -> Iterator[str]:
    if run.state == "finished":
        return
    need = LITTLE_SPACE
    if run.checkpoint is not None and run.checkpoint.exists():
        inner = run.checkpoint.rglob("*") if run.checkpoint.is_dir() else [run.checkpoint]
        need = sum(file.stat().st_size for file in inner if file.is_file())
    if (free := shutil.disk_usage(run.path).free) < need:
        yield f"the disk is nearly full: {free / 2**30:.2f} GiB free, the next checkpoint needs {need / 2**30:.2f}"
