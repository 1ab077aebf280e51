"""One reading of a file of weights: every layout in which VAR's weights go round gives the same tensors, or one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vae
from safetensors.torch import save_file
from students import lively_var
from torch import Tensor, nn

from patches import load_upstream
from refocus_ext.errors import UsageError
from refocus_ext.storage.reading import VAR, VQVAE, Kind, read_network
from refocus_ext.storage.upstream_weights import is_plain, vae_geometry, vae_state_dict

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    upstream = load_upstream()
    vae = small_vae(upstream).requires_grad_(False).eval()
    return {"VQVAE": vae.state_dict(), "VAR": lively_var(upstream, vae=vae).state_dict()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def compiled_blocks(state: State) -> State:
    """Every block and the decoder under torch.compile, as a module in a module."""
    parts = [name.split(".") for name in state]
    names = [
        ".".join([*part[:2], "_orig_mod", *part[2:]]) if part[0] in ("blocks", "decoder") else ".".join(part)
        for part in parts
    ]
    return dict(zip(names, state.values(), strict=True))


def wrapped(word: str, state: State) -> dict[str, State]:
    return {word: state}


WORDS = ("state_dict", "model", "ema", "model_ema", "vae", "net", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "vae.", "var.", "module._orig_mod.", "_orig_mod.module.", "a.b.")
LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    **{f"wrapped in {word}": partial(wrapped, word) for word in WORDS},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}, "epoch": 3, "optimizer": {"state": {}}},
    **{f"prefix {prefix}": partial(prefixed, prefix=prefix) for prefix in PREFIXES},
    "compiled blocks": compiled_blocks,
    "fsdp": lambda state: prefixed(state, "_fsdp_wrapped_module."),
    "prefix in a dict": lambda state: {"model": prefixed(compiled_blocks(state), "module."), "step": 7},
    "averaged beside trained": lambda state: {
        "model": {name: tensor * 0 for name, tensor in state.items()},
        "model_ema": state,
    },
    "with its teacher": lambda state: {"student": state, "teacher": {name: t * 0 for name, t in state.items()}},
    "own checkpoint": lambda state: {"var": state, "var_optimizer": {"state": {}}, "step": 3},
    "options": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4)},
    "entries beside tensors": lambda state: {**state, "epoch": 3},
    "critic": lambda state: {**state, "loss.discriminator.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("kind", [VAR, VQVAE], ids=["VAR", "VQVAE"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(layout: str, kind: Kind, states: dict[str, State], tmp_path: Path) -> None:
    state = states[kind.name]
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.bin")
    read = read_network(tmp_path / "weights.bin", kind)
    assert same(read.state, state)
    assert read.plain == (layout == "plain") == (not read.notes) == is_plain(tmp_path / "weights.bin")


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("kind", [VAR, VQVAE], ids=["VAR", "VQVAE"])
def test_both_networks_in_one_file(kind: Kind, states: dict[str, State], tmp_path: Path) -> None:
    var, vae = states["VAR"], states["VQVAE"]
    upstreams = {"epoch": 1, "trainer": {"var_wo_ddp": var, "vae_local": vae, "var_opt": {}}, "args": {"depth": 2}}
    flat = prefixed(var, "var.") | prefixed(vae, "vae.")
    inside = var | prefixed(vae, "vae_local.")
    for content in (upstreams, flat, {"model": flat}, inside, {"var": var, "vae": vae}):
        torch.save(content, tmp_path / "renamed.pth")
        assert same(read_network(tmp_path / "renamed.pth", kind).state, states[kind.name])


def test_safetensors_are_known_by_their_bytes(states: dict[str, State], tmp_path: Path) -> None:
    for name in ("vae.safetensors", "vae.pth"):
        save_file({key: tensor.contiguous() for key, tensor in states["VQVAE"].items()}, tmp_path / name)
        read = read_network(tmp_path / name, VQVAE)
        assert same(read.state, states["VQVAE"]) and not read.plain


def test_an_old_file_of_torch(states: dict[str, State], tmp_path: Path) -> None:
    torch.save(states["VQVAE"], tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_network(tmp_path / "old.pth", VQVAE).state, states["VQVAE"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32_and_are_told(
    dtype: torch.dtype, states: dict[str, State], tmp_path: Path
) -> None:
    half = {name: t.to(dtype) if t.is_floating_point() else t for name, t in states["VAR"].items()}
    torch.save(half, tmp_path / "half.pth")
    read = read_network(tmp_path / "half.pth", VAR)
    assert same(read.state, {name: t.float() if t.is_floating_point() else t for name, t in half.items()})
    assert read.notes == (f"stored in {str(dtype).removeprefix('torch.')}, loaded as fp32",)


def test_what_is_left_out_is_told(states: dict[str, State], tmp_path: Path) -> None:
    content = {"model": prefixed(states["VQVAE"], "module.") | {"loss.w": torch.ones(1)}, "optimizer": {}, "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    notes = "; ".join(read_network(tmp_path / "w.pth", VQVAE).notes)
    assert "read from its entry model" in notes and "ignored: optimizer, epoch" in notes
    assert "module.encoder.conv_in.weight read as encoder.conv_in.weight" in notes
    assert "1 tensor of other networks ignored (the first is loss.w)" in notes


def test_a_folder_with_one_file(states: dict[str, State], tmp_path: Path) -> None:
    both = {"trainer": {"var_wo_ddp": states["VAR"], "vae_local": states["VQVAE"]}}
    for number, name in enumerate(("ar-ckpt-last.pth", "ar-ckpt-best.pth")):
        torch.save(both if number else {}, tmp_path / name)
    read = read_network(tmp_path, VAR)  # upstream's own folder holds both, and the best is meant
    assert read.path.name == "ar-ckpt-best.pth" and "read from ar-ckpt-best.pth" in read.notes
    assert same(read_network(tmp_path, VQVAE).state, states["VQVAE"])
    (tmp_path / "hub").mkdir()
    save_file(
        {key: tensor.contiguous() for key, tensor in states["VAR"].items()}, tmp_path / "hub" / "model.safetensors"
    )
    assert same(read_network(tmp_path / "hub", VAR).state, states["VAR"])
    for depth in (2, 3):
        torch.save(states["VAR"], tmp_path / f"var_d{depth}.pth")
    assert "several files of VAR weights (var_d2.pth, var_d3.pth); give the file itself" in complaint(tmp_path)


def test_a_file_is_memory_mapped(states: dict[str, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    load = torch.load

    def watched(*words: Any, **named: Any) -> Any:
        seen.append((named["mmap"], named["weights_only"]))
        return load(*words, **named)

    monkeypatch.setattr(torch, "load", watched)
    torch.save(states["VAR"], tmp_path / "var.pth")
    read_network(tmp_path / "var.pth", VAR)
    assert seen == [(True, True)]


# ------------------------------------------------------------------------------------------------ what is refused


def complaint(path: Path, kind: Kind = VAR) -> str:
    with pytest.raises(UsageError) as error:
        read_network(path, kind)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


def test_what_is_found_instead_is_named(states: dict[str, State], tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    for content, words in (
        (nn.Linear(2, 1).state_dict(), "holds no VAR but 2 tensors of another network (the first is 'weight')"),
        ({"model": nn.Linear(2, 1).state_dict()}, "the first is 'model.weight'"),
        (states["VQVAE"], "holds no VAR but a VQVAE; give another file"),
        ({"epoch": 3, "lr": 0.1}, 'no tensors at all (its entries are "epoch", "lr")'),
        ({}, "its entries are nothing"),
        ({"a": states["VAR"], "b": states["VAR"]}, "holds several VARs ('a' and 'b')"),
        (states["VAR"]["pos_start"], "but a pickled Tensor"),
        ({"trainer": {"var_opt": {}}}, "a training checkpoint without a VAR (var_wo_ddp)"),
        (prefixed(states["VAR"], "module.") | {"module._orig_mod.pos_start": torch.ones(1)}, "pos_start twice"),
    ):
        torch.save(content, file)
        assert words in complaint(file), words


def test_a_single_scale_vqgan_is_named(states: dict[str, State], tmp_path: Path) -> None:
    vqgan = {name: tensor for name, tensor in states["VQVAE"].items() if "quant_resi" not in name}
    torch.save(vqgan, tmp_path / "vqgan.ckpt")
    assert "a VQVAE of one scale, without VAR's quantize.quant_resi" in complaint(tmp_path / "vqgan.ckpt", VQVAE)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize("kind", [VAR, VQVAE], ids=["VAR", "VQVAE"])
def test_a_network_without_one_of_its_tensors_is_told_which(
    kind: Kind, prefix: str, states: dict[str, State], tmp_path: Path
) -> None:
    for mark in kind.landmarks:
        if mark.endswith("."):  # another network's, see above
            continue
        state = {
            name: tensor for name, tensor in prefixed(states[kind.name], prefix).items() if not name.endswith(mark)
        }
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        told = complaint(tmp_path / "w.pth", kind)
        assert (
            f"holds {len(state)} tensors of a {kind.name}, but lacks {mark}; give a file with the whole state dict"
            in told
        )


def test_one_tensor_of_many_is_another_networks(tmp_path: Path) -> None:
    torch.save({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "w.pth")
    told = complaint(tmp_path / "w.pth", VQVAE)
    assert "holds no VQVAE but 1 tensor of another network (the first is 'encoder.conv_in.weight')" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04 and nothing more", "or is damaged; copy it again"),
    ],
)
def test_files_that_are_no_weights(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert words in complaint(tmp_path / "w.pth")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "w.pth")
    assert "holds Python objects (torch.nn.modules.linear.Linear" in complaint(tmp_path / "w.pth")


@pytest.mark.parametrize("phis", [0, 1, 3, 4])
def test_the_geometry_of_every_sharing_of_phi(phis: int, tmp_path: Path) -> None:
    vae = small_vae(load_upstream(), share_quant_resi=phis)
    torch.save(vae.state_dict(), tmp_path / "vae.pth")
    assert vae_geometry(read_network(tmp_path / "vae.pth", VQVAE).state).share_quant_resi == phis


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    """A measure of them would look like a number. VAR's mask holds infinities, which are meant."""
    state = small_vae(load_upstream()).state_dict()
    torch.save(state, tmp_path / "good.pth")
    assert vae_state_dict(tmp_path / "good.pth").keys() == state.keys()
    state["quant_conv.bias"][0] = torch.nan
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UsageError, match=r"bad.pth holds values that are not numbers \(in quant_conv.bias\)"):
        vae_state_dict(tmp_path / "bad.pth")
