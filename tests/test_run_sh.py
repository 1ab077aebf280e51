"""run.sh: wrong usage before anything is installed, a new machine with and without network, several processes, the Tab key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shell(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "run.sh"), *argv], capture_output=True, text=True, env=os.environ | environment
    )


def test_run_sh_helps_with_a_bare_interpreter(tmp_path: Path) -> None:
    result = shell(PATH="/usr/bin:/bin:" + str(Path(sys.executable).parent), HOME=str(tmp_path))
    assert result.returncode == 0 and "usage: bash run.sh COMMAND" in result.stdout


def test_run_sh_tells_wrong_usage_before_it_installs() -> None:
    for argv in (["tokenzier"], ["tokenizer", "--stps", "3"], ["distill"]):
        result = shell(*argv, REFOCUS_PYTHON=sys.executable)
        assert result.returncode == 2 and "installing" not in result.stderr


def test_run_sh_names_what_a_chosen_interpreter_lacks(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    result = shell("tokenizer", REFOCUS_PYTHON=str(tmp_path / "bare" / "bin" / "python"))
    assert result.returncode == 1 and re.search(r"lacks torch, torchvision.*; install them, or unset it", result.stderr)


def test_run_sh_refuses_words_of_the_environment_that_it_cannot_use(tmp_path: Path) -> None:
    for name, value in (("NPROC", "2x"), ("NPROC", "0"), ("NNODES", "two")):
        result = shell("tokenizer", "--dry-run", **{name: value})
        assert result.returncode == 2 and f"{name}={value} is not a whole number from 1" in result.stderr
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    result = shell("status", REFOCUS_PYTHON=str(tmp_path / "old"))
    assert result.returncode == 1 and "older than Python 3.10" in result.stderr


def test_run_sh_finds_itself_in_spite_of_cdpath() -> None:
    result = subprocess.run(
        ["bash", f"{ROOT.name}/run.sh", "help"], capture_output=True, text=True, cwd=ROOT.parent,
        env=os.environ | {"CDPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert result.returncode == 0 and result.stdout.startswith("ReFocus-VAR")


def test_environment_check_sees_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    from refocus_ext import environment

    assert environment.lacking("test") == []
    monkeypatch.setattr(environment, "_requirements", lambda group: ["torch>=999", "no-such-package>=1"])
    assert [lack.split(" ")[0] for lack in environment.lacking()] == ["torch>=999", "no-such-package"]


def test_environment_check_knows_an_upper_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from refocus_ext import environment

    monkeypatch.setattr(environment, "_requirements", lambda group: ["pytest>=1,<2", "typed-argparse>=0.3.1,<0.4"])
    assert [lack.split(" ")[0] for lack in environment.lacking()] == ["pytest<2"]
    assert environment.requirements("command-line") == ["typed-argparse>=0.3.1,<0.4"]


def test_a_list_of_requirements_ends_where_it_ends() -> None:
    """Also with a comment behind it: otherwise completion would need ruff and mypy."""
    from refocus_ext import environment

    assert [environment._requirements(group) for group in ("completion", "wandb")] == [
        ["argcomplete>=3"],
        ["wandb>=0.16"],
    ]


@pytest.mark.parametrize("options", [["tokenizer", "--data", "/nowhere"], ["distill", "--tokenizer", "/nowhere"]])
def test_several_processes_refuse_with_one_sentence(options: list[str], tmp_path: Path) -> None:
    """No report of torchrun's, though the device is named and NPROC asks for two."""
    words = [*options, "--device", "cpu", "--out", str(tmp_path / "run")]
    result = shell(*words, REFOCUS_PYTHON=sys.executable, REFOCUS_UPSTREAM="stand-in", NPROC="2")  # fetches nothing
    assert result.returncode == 2 and not result.stdout
    assert re.fullmatch(r"refocus: --(data|tokenizer): /nowhere (is|does not exist).*\n", result.stderr)
    assert not (tmp_path / "run").exists()


def test_a_node_needs_its_number_and_the_first_ones_address() -> None:
    given = {"REFOCUS_PYTHON": sys.executable, "REFOCUS_UPSTREAM": "stand-in", "NNODES": "4"}
    for missing, rest in (("NODE_RANK", {}), ("MASTER_ADDR", {"NODE_RANK": "0"})):
        result = shell("tokenizer", "--dry-run", **given, **rest)
        assert result.returncode == 2 and result.stderr.startswith(f"refocus: NNODES=4 needs {missing} too")


def test_tab_completes_commands_options_and_choices() -> None:
    script = """
eval "$(bash run.sh completion)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=($1)
_refocus_run_sh
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def complete(line: str) -> list[str]:
        command = ["bash", "-c", script, "bash", line]
        environment = os.environ | {"REFOCUS_PYTHON": sys.executable}
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
        return result.stdout.split()

    assert complete("bash run.sh tokenizer --bl") == ["--blur"]
    assert complete("bash run.sh tok") == ["tokenizer", "tokens"]
    assert complete("bash run.sh tokenizer --blur g") == ["gaussian"]
    assert complete("bash another.sh tokenizer --bl") == []


@pytest.fixture
def page_needs_more(tmp_path: Path) -> Path:
    """A copy of the project whose page needs a package that does not exist; its .venv is this interpreter."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "refocus_ext", root / "refocus_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "patches", root / "patches", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.sh", root)
    lines = (ROOT / "pyproject.toml").read_text().splitlines(keepends=True)
    lines = ['web = ["refocus-no-such-package>=1,<2"]\n' if line.startswith("web = ") else line for line in lines]
    (root / "pyproject.toml").write_text("".join(lines))
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return root


def ask_for_the_page(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("REFOCUS_")}
    return subprocess.run(
        ["bash", str(root / "run.sh"), "web"], capture_output=True, text=True, cwd=root,
        env=mine | {"PIP_NO_INDEX": "1", "REFOCUS_UPSTREAM": "stand-in"} | environment,
    )  # fmt: skip


def test_what_the_page_needs_is_installed_when_it_is_first_asked_for(page_needs_more: Path) -> None:
    result = ask_for_the_page(page_needs_more)
    assert result.returncode == 1 and not result.stdout
    lines = result.stderr.splitlines()
    assert lines[0] == (
        f"refocus: installing refocus-no-such-package>=1,<2, which web needs, into {page_needs_more}/.venv (once)"
    )
    assert lines[-1].startswith("refocus: installing refocus-no-such-package>=1,<2 failed (above: why).")


def test_nothing_is_installed_into_a_python_of_the_users(page_needs_more: Path) -> None:
    result = ask_for_the_page(page_needs_more, REFOCUS_PYTHON=sys.executable)
    assert result.returncode == 1 and result.stderr == (
        f"refocus: web needs refocus-no-such-package, which {sys.executable} lacks; "
        f"`{sys.executable} -m pip install 'refocus-no-such-package>=1,<2'` adds it.\n"
    )


# ------------------------------------------------------------------------------------------------ a new machine


def make_wheel(name: str, folder: Path) -> None:
    """An installed pure-Python package as a wheel, for a pip that has no network."""
    package = distribution(name)
    stem = f"{name.replace('-', '_')}-{package.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file in package.files or ():
            if (
                "__pycache__" not in file.parts
                and file.parts[0] != ".."
                and file.name not in ("INSTALLER", "REQUESTED")
            ):
                wheel.write(str(file.locate()), str(file))


@pytest.fixture
def new_machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`machine(words..., wheels=True)` runs run.sh where python3 has no packages; wheels: whether pip finds typed-argparse."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "refocus_ext", root / "refocus_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.sh", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    (tmp_path / "wheels").mkdir()
    for package in ("typed-argparse", "typing-extensions"):
        make_wheel(package, tmp_path / "wheels")

    def machine(*words: str, wheels: bool) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{tmp_path / 'bare' / 'bin'}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PIP_NO_INDEX": "1",
            "PIP_USER": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels") if wheels else "",
            "REFOCUS_TICK": "0.1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = ["bash", str(root / "run.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)

    return machine


def test_without_network_there_is_the_list(new_machine: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for words in ([], ["help"], ["--help"]):
        listed = new_machine(*words, wheels=False)
        assert listed.returncode == 0 and "usage: bash run.sh COMMAND" in listed.stdout and not listed.stderr
    assert "did you mean 'tokenizer'?" in new_machine("tokeniser", "--help", wheels=False).stderr
    assert "--slow" in new_machine("test", "--help", wheels=False).stdout
    refused = new_machine("tokenizer", "--help", wheels=False)
    assert refused.returncode == 1 and not refused.stdout
    assert "installing typed-argparse>=0.3.1,<0.4 failed (above: why)" in refused.stderr


def test_options_are_read_before_the_heavy_packages_are_installed(
    new_machine: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Into a .venv that an interrupted first call, or one without python3-venv, has left without pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "project" / ".venv")], check=True)
    helped = new_machine("tokenizer", "--help", wheels=True)
    assert helped.returncode == 0 and "--blur {disk" in helped.stdout
    assert "installing typed-argparse>=0.3.1,<0.4, which reads the options, into" in helped.stderr
    assert re.search(r"^refocus: installing for \d+ s: ", helped.stderr, flags=re.M), "it says that it is at work"
    wrong = new_machine("tokenizer", "--stps", "3", wheels=False)
    assert wrong.returncode == 2 and "did you mean --steps?" in wrong.stderr and "installing" not in wrong.stderr
    right = new_machine("tokenizer", "--steps", "3", wheels=False)
    assert right.returncode == 1 and "installing the packages failed (above: why)" in right.stderr
    assert re.search(r"lacks torch>?.*torchvision.*: installing into", right.stderr)
