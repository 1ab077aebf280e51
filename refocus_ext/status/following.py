"""What to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refocus_ext.distill.options import DistillOptions
from refocus_ext.options.fields import Options
from refocus_ext.options.kinds import AUTO
from refocus_ext.options.parser import filled
from refocus_ext.status.run import Run
from refocus_ext.tokenizer.options import TokenizerOptions

CLASSES: Mapping[str, type[Options]] = {"tokenizer": TokenizerOptions, "distill": DistillOptions}
RUN_SH = Path(__file__).resolve().parents[2] / "run.sh"
OF_ONE_INVOCATION = ("resume", "extend", "dry_run", "out")


def following(run: Run) -> list[str]:
    """Command lines; none for a run that is running, or for a finished part of an ablation, whose own command goes on."""
    if run.state == "finished":
        return [] if run.ablation else _after(run)
    return [] if run.state == "running" else [resume_line(run)]


def _after(run: Run) -> list[str]:
    path = shlex.quote(str(run.path))
    if run.command == "tokenizer":
        teacher = " --teacher off" if run.options.get("alias") == "off" else ""
        return [f"bash run.sh distill --tokenizer {path}{teacher}"]
    to = shlex.quote(f"exports/{run.path.resolve().name}")
    return [f"bash run.sh sample --student {path}", f"bash run.sh export --run {path} --to {to}"]


def resume_line(run: Run) -> str:
    """The command that continues the run: as it was typed, or for a run of an earlier version made from its options. With --out
    where the folder has been moved, and in the folder where it was typed."""
    recorded = run.config.get("invocation")
    if not isinstance(recorded, dict):
        return f"{rebuilt_line(run.command, run.options)} --out {shlex.quote(str(run.path))}"
    line, folder = str(recorded["line"]), Path(recorded["folder"])
    elsewhere = folder.resolve() != Path.cwd().resolve()
    if (folder / str(run.options.get("out", ""))).resolve() != run.path.resolve():
        line += f" --out {shlex.quote(str(run.path.resolve() if elsewhere else run.path))}"
    if elsewhere:
        if not (folder / "run.sh").is_file():
            line = line.replace("bash run.sh", f"bash {shlex.quote(str(RUN_SH))}", 1)
        line = f"cd {shlex.quote(str(folder))} && {line}"
    return line


def rebuilt_line(command: str, options: Mapping[str, Any]) -> str:
    """A command line that stands for options of config.json: those that differ from what preset and defaults give."""
    cls = CLASSES[command]
    known = {name: _typed(value) for name, value in options.items() if name in cls.fields()}
    typed = {"preset": known["preset"]} if "preset" in known else {}
    for name in cls.fields():  # in order: what one option gives may follow from one before it
        if name in known and name not in OF_ONE_INVOCATION and known[name] not in (None, ""):
            usual = filled(cls, {**typed, "resume": "never"})[name]
            if known[name] != usual:
                typed[name] = known[name]
    return " ".join(["bash run.sh", command, *(_words(name, value) for name, value in typed.items())])


def _typed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _words(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if name == "accumulate" and value == AUTO:
        return f"{flag} auto"
    return f"{flag} {shlex.quote(','.join(map(str, value)) if isinstance(value, tuple) else str(value))}"
