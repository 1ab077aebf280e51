"""`index.json` of a token cache: its identity and layout; and the check of its shards, shared by all processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from refocus_ext.engine.distributed import World
from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import remove_torn, save_json
from refocus_ext.tokens.identity import CacheIdentity
from refocus_ext.tokens.shards import Layout, broken_in, find_shards, intact

FORMAT = 1  # of index.json and of the shards
FILE = "index.json"


def read_index(folder: Path, identity: CacheIdentity) -> Layout | None:
    """The layout of the cache in `folder`; None if there is no cache yet.

    Raises:
        UsageError: the folder holds a cache of another identity, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder.")
    file = folder / FILE
    if not file.is_file():
        if folder.is_dir() and any(not path.name.endswith(".part") for path in folder.iterdir()):
            raise UsageError(f"{folder} holds files but no token cache; choose an empty or a new folder.")
        return None
    try:
        index = json.loads(file.read_text())
        form, theirs, layout = index["format"], dict(index["identity"]), Layout(**index["layout"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{file} is not the index of a token cache; choose another folder, or remove it.") from None
    if form != FORMAT:
        raise UsageError(
            f"the token cache {folder} has format {form}, but this version writes {FORMAT}; remove it to make it again."
        )
    if found := identity.differences(theirs):
        more = f" and {len(found) - 4} more differences" if len(found) > 4 else ""
        raise UsageError(
            f"the token cache {folder} was made with {' and '.join(found[:4])}{more}; choose another folder, or "
            "remove this one to make it again."
        )
    return layout


def precision_of(folder: Path) -> str:
    """The arithmetic in which the cache in `folder` was encoded; '' without a cache."""
    try:
        return str(json.loads((folder / FILE).read_text())["identity"]["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_index(folder: Path, identity: CacheIdentity, layout: Layout) -> None:
    """Makes the folder and its index.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_torn(folder)
        index: dict[str, Any] = {"format": FORMAT, "identity": identity.to_dict(), "layout": dataclasses.asdict(layout)}
        save_json(folder / FILE, index)
    except OSError as error:
        raise UsageError(
            f"the token cache {folder} cannot be written ({error.strerror}); choose another folder."
        ) from None


def require_space(folder: Path, need: int) -> None:
    """Raises UsageError unless `need` bytes are free in the folder or in its nearest existing parent."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(there).free) < need:
        raise UsageError(
            f"{folder} has {size_text(free)} free, but the token cache needs {size_text(need)} more; free some space, choose "
            "another folder, or fewer crops."
        )


def size_text(count: int) -> str:
    """'20.8 GB', '3.1 MB'."""
    unit = next((unit for unit in (9, 6, 3) if count >= 10**unit), 0)
    return f"{count / 10**unit:.1f} {({9: 'GB', 6: 'MB', 3: 'kB'})[unit]}" if unit else f"{count} bytes"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The findings of all processes."""

    intact: dict[int, Path]
    damaged: dict[int, Path]
    broken: int  # images in the intact shards that could not be decoded


def inspect(folder: Path, layout: Layout, world: World) -> Inspection:
    """Reads every existing shard, each process its share, and compares checksums; all processes get the same result."""
    shards = find_shards(folder, layout)
    world.barrier()  # no process changes the folder before all have listed it
    verdict_S2 = torch.zeros(layout.shards, 2, dtype=torch.float64)  # damaged; broken images
    for number in sorted(shards)[world.rank :: world.size]:
        if intact(shards[number], layout):
            verdict_S2[number, 1] = len(broken_in(shards[number], layout))
        else:
            verdict_S2[number, 0] = 1
    damaged, broken = world.sum(verdict_S2).T.tolist()
    return Inspection(
        {number: path for number, path in shards.items() if not damaged[number]},
        {number: path for number, path in shards.items() if damaged[number]},
        round(sum(broken)),
    )
