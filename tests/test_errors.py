"""What libraries complain of names the thing; the command adds its option."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from refocus_ext.errors import RunFailed, UsageError, named

PACKAGE = Path(__file__).resolve().parents[1] / "refocus_ext"
ROOMS = ("evidence", "export", "images", "optics", "sampling", "storage", "tokens", "vanilla_var", "web")


@pytest.mark.parametrize("kind", [UsageError, RunFailed])
def test_the_option_comes_first_and_the_error_stays_itself(kind: type[Exception]) -> None:
    cause = OSError("disk")
    with pytest.raises(kind) as caught, named("--out"):
        raise kind("runs/x cannot be written.") from cause
    assert str(caught.value) == "--out: runs/x cannot be written." and caught.value.__cause__ is cause


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError, match="x"), named("--out"):
        raise KeyError("x")


def complaints(tree: ast.Module) -> Iterator[str]:
    """The fixed words of every error for the user that a module raises, without commands in backticks."""
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id in ("UsageError", "RunFailed"):
            words = (node.value for node in ast.walk(call) if isinstance(node, ast.Constant))
            yield re.sub(r"`[^`]*`", "", "".join(word for word in words if isinstance(word, str)))


def libraries() -> list[Path]:
    """The modules of these rooms that are no commands: those without a `main`. `sampling/jobs.py` is a command's body."""
    modules = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]
    return [path for path in modules if "\ndef main(" not in path.read_text() and path.name != "jobs.py"]


@pytest.mark.parametrize("path", libraries(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_name_no_options(path: Path) -> None:
    assert not [words for words in complaints(ast.parse(path.read_text())) if re.search(r"(?<![\w-])--[a-z]", words)]
