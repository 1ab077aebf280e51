"""README and docs: their Python runs as it stands; their commands, options, files and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from students import lively_var, write_run

from patches import load_upstream
from refocus_ext.commands import COMMANDS, OF_RUN_SH, command_line

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXT = {page: page.read_text() for page in PAGES}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], flags=re.S)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from the headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_python_blocks_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs" / "distill-d20", var=lively_var(load_upstream()))
    (run / "classes.json").write_text('["chelsea", "rocket"]')
    vae = load_upstream().build_vae(vocab_size=512, ch=32, patch_nums=(1, 2, 3, 4))
    (tmp_path / "runs" / "tokenizer").mkdir()
    torch.save(vae.state_dict(), tmp_path / "runs" / "tokenizer" / "vae.pth")
    student, interface, tokens = (block for page in PAGES for block in blocks(page, "python"))
    exec(student, {})
    assert Image.open("chelsea.png").size == (64, 64)
    made: dict[str, torch.Tensor] = {}
    exec(interface, made)
    assert (
        made["restored"].shape == (2, 3, 64, 64) and made["hidden"].shape == (2, 30, 128) and made["nats"].shape == (2,)
    )
    names: dict[str, list[torch.Tensor]] = {}
    exec(tokens, names)
    assert [tuple(idx.shape) for idx in names["tokens"]] == [(1, 1), (1, 4), (1, 9), (1, 16)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_exist(page: Path) -> None:
    """Of code blocks, and of commands inside sentences."""
    code = [line.split("#")[0] for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", TEXT[page], flags=re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    calls = [call for text in [*code, *spans] for call in re.findall(r"bash run\.sh ([a-z]+)([^&]*)", text)]
    calls += [
        found.groups() for span in spans if (found := re.match(r"([a-z]+) (--.*)$", span)) and found[1] in COMMANDS
    ]
    parser = command_line()
    for name, rest in calls:
        assert name in OF_RUN_SH or name in COMMANDS, name
        if name in COMMANDS:
            typed = re.sub(r'"[^"]*"', "", rest)  # options of another command, in quotes
            assert set(re.findall(r"--[a-z][a-z0-9-]*", typed)) <= parser.flags_of(name), (name, rest)
    assert len(calls) > 15 or page.name not in ("README.md", "recipes.md")


def test_every_command_is_in_the_readme() -> None:
    table = TEXT[ROOT / "README.md"].partition("## Commands")[2].partition("## ")[0]
    assert not [name for name in COMMANDS if f"`{name}`" not in table]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_files_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT[page])
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
    files = re.findall(r"`((?:refocus_ext|patches|tests)/[\w/.]*)`", TEXT[page])
    assert not [name for name in files if not (ROOT / name).exists()]


def test_pages_are_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in TEXT:
            continue
        reached.add(page)
        names = [name.partition("#")[0] for name in re.findall(r"\]\(([^)\s]+)\)", TEXT[page])]
        waiting += [(page.parent / name).resolve() for name in names if name.endswith(".md")]
    assert reached == set(PAGES)
