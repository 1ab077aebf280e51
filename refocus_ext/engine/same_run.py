"""When an invocation continues the run in a folder: it must compute the same, however it is spelled and wherever it computes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refocus_ext.storage.atomic import sha256

PRECISIONS = ("fp16", "bf16", "fp32")  # rising
PATHS = ("data", "init", "teacher_from")  # of them the contents count


@dataclass(frozen=True)
class RunIdentity:
    """What makes two runs the same run, and what may change between the invocations of one.

    Args:
        options: those that determine the result, by name, as JSON holds them.
        meant: what an option stands for where one thing has several spellings: the contents of its folder or file, or what
            "auto" is here. None where that cannot be told (a file that is gone).
        told: settings that may change; a resumed run says which did.
        defaults: the value of an option that an old config.json lacks, because it did not exist yet.
        idle: options without effect, given the others.
        following: options laid out over the steps, unless they are given.
        networks: checksums of the frozen networks in the loss, by the option that names their file. Old runs do not record them.
        command: whose run it is.
    """

    options: Mapping[str, Any]
    meant: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    following: frozenset[str] = frozenset()
    networks: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Its entries in config.json."""
        entries = {"identity": dict(self.options), "meant": dict(self.meant), "told": dict(self.told)}
        return entries | ({"networks": dict(self.networks)} if self.networks else {})

    def compare(self, config: Mapping[str, Any]) -> Comparison:
        """With a run's config.json; entries that an old one lacks are taken as what they were then.

        Raises:
            KeyError, TypeError: it is no configuration of a run.
        """
        theirs, meant = dict(config["identity"]), dict(config.get("meant") or {})
        ours = json.loads(json.dumps(self.options))
        here = json.loads(json.dumps(self.meant))
        found = Comparison()
        told_before = {**theirs, **dict(config.get("options") or {}), **dict(config.get("told") or {})}
        for name in sorted(ours.keys() | theirs.keys()):
            if name in self.idle or (name not in ours and name in self.told):
                continue
            our, their = (values.get(name, self.defaults.get(name)) for values in (ours, theirs))
            if _same(name, our, their, here.get(name), meant.get(name)):
                if our != their:
                    found.told.append(f"{name} = {short(our)} (was {short(their)}{_why(name)})")
            elif our == their:  # the same words for something else
                found.refused[name] = f"{name} = {short(our)}, where there is something else now"
            else:
                found.refused[name] = f"{name} = {short(their)}, this one has {short(our)}"
        networks = dict(config.get("networks") or {})
        for name, our in self.networks.items():
            if (their := networks.get(name, our)) != our:
                found.refused[name] = f"{name} = a network of checksum {their[:12]}, this one has {our[:12]}"
        for name, value in json.loads(json.dumps(self.told)).items():
            before = told_before.get(name, value)
            if before != value:
                found.told.append(f"{name} = {short(value)} (was {short(before)})")
        return found


@dataclass
class Comparison:
    """Differences as clauses: those that make it another run, by option, and those that only have to be told."""

    refused: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def _same(name: str, our: Any, their: Any, our_meaning: Any, their_meaning: Any) -> bool:
    if name == "precision":
        return our == their or _not_lower(our_meaning or our, their_meaning or their)
    if our_meaning is not None and their_meaning is not None:
        return bool(our_meaning == their_meaning)
    return our == their or (name in PATHS and bool(our and their) and os.path.realpath(our) == os.path.realpath(their))


def _not_lower(ours: str, theirs: str) -> bool:
    """Whether precision `ours` is at least `theirs`; 'auto' of an old run may have been any."""
    return ours not in PRECISIONS or theirs not in PRECISIONS or PRECISIONS.index(ours) >= PRECISIONS.index(theirs)


def _why(name: str) -> str:
    return ", with the same contents" if name in PATHS else ""


def file_meaning(word: str) -> str | None:
    """The sha256 of a file given by an option; '' without the option, None if there is no such file."""
    if not word:
        return ""
    return sha256(Path(word)) if Path(word).is_file() else None


def short(value: Any) -> str:
    """A value for a message; checksums (file -> sha256) are shortened to their first digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(entry)[:12]}" for name, entry in value.items())
    return str(value)
