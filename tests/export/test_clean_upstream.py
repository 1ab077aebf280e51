"""The script of the proof: what it reads, and that it takes nothing of this project."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

from refocus_ext.export import clean_upstream


def test_it_imports_nothing_of_this_project() -> None:
    tree = ast.parse(Path(clean_upstream.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {name for node in nodes for name in ([a.name for a in node.names] + [getattr(node, "module", "") or ""])}
    assert "torch" in modules and not [name for name in modules if name.split(".")[0] in ("refocus_ext", "patches")]


def test_plain_and_nested_weights_are_read(tmp_path: Path) -> None:
    state = {"w": torch.arange(3.0)}
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"trainer": {"var_wo_ddp": state, "vae_local": {}}, "epoch": 3}, tmp_path / "nested.pth")
    for name in ("plain.pth", "nested.pth"):
        assert torch.equal(clean_upstream.weights(str(tmp_path / name), "var_wo_ddp")["w"], state["w"])
