"""Weight files: found, read without unpickling code, loaded strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from refocus_ext.errors import UsageError
from refocus_ext.storage.upstream_weights import vae_state_dict, var_state_dict
from refocus_ext.storage.weights import (
    checksum,
    find_weights,
    load_strictly,
    read_state_dict,
    refuse_folder,
    state_bytes,
)


def test_size_counts_weights_and_buffers() -> None:
    assert state_bytes(nn.BatchNorm1d(3)) == 4 * 3 * 4 + 8  # weight, bias, mean, variance; a count of 8 bytes


def test_a_networks_checksum_is_that_of_its_values() -> None:
    layers = [nn.Linear(2, 3), nn.Linear(3, 2)]
    whole = checksum(nn.Sequential(*layers))
    assert whole == checksum(nn.ModuleDict({"b": layers[1], "a": layers[0]})), "other names, another order"
    assert whole == checksum(nn.Sequential(*layers).eval().requires_grad_(False))
    with torch.no_grad():
        layers[0].weight[0, 0] += 1e-3
    assert whole != checksum(nn.Sequential(*layers))


def test_the_given_file_or_the_first_in_torchs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert find_weights("", "a.pth", "b.pth") is None and find_weights("nowhere.pth", "a.pth") is None
    (tmp_path / "checkpoints" / "b.pth").write_bytes(b"x")
    assert find_weights("", "a.pth", "b.pth") == tmp_path / "checkpoints" / "b.pth"
    (tmp_path / "checkpoints" / "a.pth").mkdir()  # a folder is no weights
    assert find_weights("", "a.pth", "b.pth") == tmp_path / "checkpoints" / "b.pth"


def test_a_state_dict_comes_back(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth", "copy it again")["w"], torch.arange(3.0))


@pytest.mark.parametrize("content", [b"", b"text", [1, 2], {}, {"w": "text"}, {"net": nn.Linear(1, 1)}])
def test_anything_else_is_refused_with_the_advice(content: object, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=r"is not a file of network weights, or is damaged; copy it again\.$"):
        read_state_dict(path, "copy it again")


def test_other_tensors_are_told_in_the_given_words() -> None:
    with pytest.raises(UsageError, match=r"^w\.pth does not fit \(.*weight.*\)\.$"):
        load_strictly(
            nn.Linear(2, 1), {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, "w.pth does not fit ({reason})."
        )


@pytest.mark.parametrize("read", [var_state_dict, vae_state_dict, refuse_folder])
def test_a_folder_in_the_place_of_weights_is_a_sentence(read: object, tmp_path: Path) -> None:
    (tmp_path / "vae.pth").mkdir()
    assert callable(read)
    with pytest.raises(UsageError, match=r"vae\.pth is a folder, not a file of weights"):
        read(tmp_path / "vae.pth")
