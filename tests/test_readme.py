"""The README's Python runs as it stands, and its commands and files are there."""

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
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_python_blocks_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs" / "distill-d20", var=lively_var(load_upstream()))
    (run / "classes.json").write_text('["chelsea", "rocket"]')
    vae = load_upstream().build_vae(vocab_size=512, ch=32, patch_nums=(1, 2, 3, 4))
    (tmp_path / "runs" / "tokenizer").mkdir()
    torch.save(vae.state_dict(), tmp_path / "runs" / "tokenizer" / "vae.pth")
    student, interface, tokens = blocks("python")
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


def test_commands_and_options_of_the_readme_exist() -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    calls = [call for line in lines for call in re.findall(r"bash run\.sh ([a-z]+)([^&]*)", line)]
    assert len(calls) > 15
    parser = command_line()
    for name, rest in calls:
        assert name in OF_RUN_SH or name in COMMANDS, name
        if name in COMMANDS:
            known = parser.flags_of(name)
            assert set(re.findall(r"--[a-z-]+", rest)) <= known, (name, rest)


def test_files_of_the_readme_exist() -> None:
    named = re.findall(r"\]\((docs/[^)]+)\)", README) + re.findall(
        r"`((?:refocus_ext|patches|tests)/[\w/.]+\.py)`", README
    )
    assert named and not [name for name in named if not (ROOT / name.partition("#")[0]).exists()]
    for page, _, heading in (name.partition("#") for name in named if "#" in name):
        titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert heading in anchors, (page, heading)
