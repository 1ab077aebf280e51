"""Reports which packages an interpreter lacks to run this project. Standard library only; imports no package."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def _requirements(group: str) -> list[str]:
    """The requirement strings of a list in pyproject.toml (no TOML parser before Python 3.11)."""
    block = re.search(rf"^{group} = \[(.*?)\](?: *#[^\n]*)?$", PYPROJECT.read_text(), flags=re.M | re.S)
    lines = [line.split("#")[0] for line in block[1].splitlines()] if block else []
    return re.findall(r'"([^"]+)"', "\n".join(lines))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _lacks(requirement: str) -> str | None:
    match = re.match(r"([\w.-]+)(?:\[.*\])?(?:>=([\d.]+))?(?:,<([\d.]+))?", requirement)
    assert match
    name, least, below = match[1], match[2], match[3]
    try:
        found = distribution(name).version
    except PackageNotFoundError:
        return name
    if least and _version(found) < _version(least):
        return f"{name}>={least} (has {found})"
    return f"{name}<{below} (has {found})" if below and _version(found) >= _version(below) else None


def _torch_pair() -> str | None:
    """torchvision is built for exactly one torch version; with another it fails to import."""
    try:
        wanted = [r for r in distribution("torchvision").requires or () if re.match(r"torch\s*\(?==", r)]
        found = distribution("torch").version
    except PackageNotFoundError:
        return None  # already in the list of missing packages
    if wanted and _version(re.split("==", wanted[0])[1]) != _version(found):
        return f"a torchvision that matches torch {found}"
    return None


def requirements(need: str) -> list[str]:
    """The requirements of `need`: "command-line" to read options, "run" for the commands, "test" for the suite as well,
    "completion" for the Tab key, "web" for what the page needs beside "run"."""
    everything = _requirements("dependencies")
    reader = [requirement for requirement in everything if requirement.startswith("typed-argparse")]
    if need == "web":
        return _requirements(need)
    if need in ("command-line", "completion"):
        return reader + ([] if need == "command-line" else _requirements(need))
    return everything + ([] if need == "run" else _requirements(need))


def lacking(need: str = "run") -> list[str]:
    """What is missing for `need`."""
    missing = [lack for requirement in requirements(need) if (lack := _lacks(requirement))]
    pair = _torch_pair() if need in ("run", "test") else None
    return missing + ([pair] if pair else [])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--requirements"]:
        print(*requirements(*sys.argv[2:]), sep="\n")
        raise SystemExit
    missing = lacking(*sys.argv[1:])
    print(", ".join(missing))
    raise SystemExit(bool(missing))
