"""Switches of the training recipe in a run: decay groups, dropout, the codebook's sample, preset vaex."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vae
from runs import TINY, parsed
from torch import Tensor, nn

from patches import Focus, Upstream
from refocus_ext import vector_quantization
from refocus_ext.commands import main
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.optimization import decay_groups
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer import training
from refocus_ext.tokenizer.codebooks import Codebooks, initialise_codebook
from refocus_ext.tokenizer.losses import critic
from refocus_ext.tokenizer.losses.objective import StructureObjective
from refocus_ext.tokenizer.recipe import StructureWeights
from refocus_ext.tokenizer.training import TokenizerTraining


def train(data: Path, out: Path, *options: str) -> int:
    return main(["tokenizer", *TINY, "--data", str(data), "--out", str(out), *options])


# ------------------------------------------------------------------------------------------------ weight decay


def optimizers_of(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """The training of a run, before its first step."""
    seen: list[TokenizerTraining] = []

    def fit(self: TokenizerTraining, _: Interruption) -> int:
        seen.append(self)
        return 0

    monkeypatch.setattr(TokenizerTraining, "fit", fit)
    assert train(data, out / "run", *options) == 0
    return seen[0]


def test_codebooks_norms_and_biases_of_a_run_do_not_decay(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = optimizers_of(image_tree, tmp_path, monkeypatch, "--weight-decay", "0.05", "--gan", "0.4")
    groups = ours.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.05, 0.0]
    assert [group["peak"] for group in groups] == [6e-4, 6e-4, 1e-3, 1e-3]
    kept = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {id(ours.vae.quantize.embedding.weight), id(ours.alias.codebook.weight)} <= kept
    for module in (*ours.vae.modules(), *ours.alias.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, (nn.Embedding, nn.GroupNorm)) or name == "bias"
            assert (id(parameter) in kept) == plain, (module, name)
    assert [group["weight_decay"] for group in ours.critic.optimizer.param_groups] == [0.05, 0.0]


def test_without_decay_the_groups_are_one_for_each_network(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = optimizers_of(image_tree, tmp_path, monkeypatch)
    groups = [[id(p) for p in group["params"]] for group in ours.optimizer.param_groups]
    assert groups == [[id(p) for p in part.parameters()] for part in (ours.vae, ours.alias)]


def test_a_run_that_decayed_everything_goes_on_as_it_began(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--weight-decay", "0.5", "--gan", "0.4", "--gan-start", "0.2")
    assert train(image_tree, tmp_path / "new", *words) == 0
    with monkeypatch.context() as before:
        for module in (training, critic):
            before.setattr(
                module, "decay_groups", lambda network, decay, **shared: decay_groups(network, 0.0, **shared)
            )
        assert train(image_tree, tmp_path / "whole", *words) == 0
        assert train(image_tree, tmp_path / "run", *words) == 0
    (tmp_path / "run" / "vae.pth").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    assert train(image_tree, tmp_path / "run", *words) == 0
    new, whole, run = ((tmp_path / name / "vae.pth").read_bytes() for name in ("new", "whole", "run"))
    assert run == whole != new


# ------------------------------------------------------------------------------------------------ dropout


def test_dropout_drops_in_train_mode_only(upstream: Upstream, pyramid: FocusPyramid, images: Tensor) -> None:
    plain, dropping = small_vae(upstream), small_vae(upstream, dropout=0.5)
    assert plain.state_dict().keys() == dropping.state_dict().keys(), "no weights of its own"
    assert not [m for m in plain.modules() if isinstance(m, nn.Dropout)], "0 is upstream's network without it"
    for vae in (plain, dropping):
        Focus(FocusPyramid(image_size=64, states=3, blur="none")).apply(vae)
    with torch.no_grad():
        ours, theirs = dropping.eval().encode_view(images), plain.eval().encode_view(images)
        assert torch.equal(ours, theirs)
        assert not torch.equal(dropping.train().encode_view(images), theirs)
        assert torch.equal(plain.train().encode_view(images), theirs)


def test_recomputed_passes_drop_the_same_activations(upstream: Upstream, pyramid: FocusPyramid, images: Tensor) -> None:
    gradients = []
    for recomputes in (False, True):
        vae = small_vae(upstream, dropout=0.3)
        Focus(pyramid, recomputes).apply(vae)
        objective = StructureObjective(vae.train(), StructureWeights(prefix=1))
        torch.manual_seed(0)
        loss = objective(images, 0).loss
        torch.rand(5)  # whatever else a step draws between the passes
        loss.backward()
        gradients.append([p.grad for p in vae.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_run_with_dropout_has_the_same_bits_recomputed(image_tree: Path, tmp_path: Path) -> None:
    assert train(image_tree, tmp_path / "plain", "--dropout", "0.2") == 0
    assert train(image_tree, tmp_path / "recomputed", "--dropout", "0.2", "--grad-checkpoint") == 0
    assert train(image_tree, tmp_path / "none") == 0
    files = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("plain", "recomputed", "none")]
    assert files[0] == files[1] != files[2]


# ------------------------------------------------------------------------------------------------ the codebook's sample


def test_a_search_in_chunks_finds_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    points, table = torch.randn(500, 8, generator=generator), torch.randn(40, 8, generator=generator)
    whole = torch.cdist(points, table).argmin(1)
    assert torch.equal(vector_quantization.nearest_row(points, table), whole)
    centres = vector_quantization.kmeans(points, 40, torch.Generator().manual_seed(1))
    monkeypatch.setattr(vector_quantization, "SEARCH", 40 * 64)  # 64 points at once
    assert torch.equal(vector_quantization.nearest_row(points, table), whole)
    again = vector_quantization.kmeans(points, 40, torch.Generator().manual_seed(1))
    assert torch.allclose(centres, again, atol=1e-5)


def test_no_search_holds_all_distances(
    upstream: Upstream, pyramid: FocusPyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codebook of preset paper's size has 8192 codes for 262,144 points: 8 GiB of distances."""
    sizes: list[int] = []
    real = torch.cdist

    def cdist(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(len(a) * len(b))
        return real(a, b)

    monkeypatch.setattr(torch, "cdist", cdist)
    monkeypatch.setattr(vector_quantization, "SEARCH", 1000)
    vae = small_vae(upstream)
    Focus(pyramid).apply(vae)
    targets = [torch.randn(50, 8, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    initialise_codebook(vae.quantize, targets, torch.Generator().manual_seed(0))
    assert len(sizes) > 10 and max(sizes) <= 1000
    assert vector_quantization.SEARCH * 4 <= 2**28 and 2**24 * 4 <= 2**28


def test_the_demo_searches_in_one_chunk() -> None:
    """So that its bits are those of a search without chunks: 64 images of 4 x 4 tokens, 512 codes."""
    demo = parsed("tokenizer")
    assert demo.codebook_images * demo.patch_nums[-1] ** 2 * demo.codebook_size <= vector_quantization.SEARCH
    assert demo.codebook_images == max(32, 2 * demo.codebook_size // demo.patch_nums[-1] ** 2), "as many as before"


@pytest.mark.parametrize(("words", "crops"), [((), 16), (("--codebook-images", "9"), 9)])  # 16 by TINY
def test_the_codebook_is_initialised_from_that_many_crops(
    words: tuple[str, ...], crops: int, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Codebooks._sample_crops

    def sample(self: Codebooks, count: int) -> Iterator[Tensor]:
        asked.append(count)
        return real(self, count)

    monkeypatch.setattr(Codebooks, "_sample_crops", sample)
    assert train(image_tree, tmp_path / "run", "--alias", "off", *words) == 0
    assert asked == [crops]


# ------------------------------------------------------------------------------------------------ preset vaex


def test_a_dry_run_of_preset_vaex(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its own size but for the batch, on the stand-in; it counts the critic before it asks for the weights."""
    monkeypatch.setenv("REFOCUS_UPSTREAM", "stand-in")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    words = ["tokenizer", "--preset", "vaex", "--data", str(image_tree), "--batch-size", "4", "--dry-run"]
    words += ["--small-images", "upsample", "--out", str(tmp_path / "run"), "--lpips", "0"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "critic " in told.out and "needs dino_deitsmall16_pretrain.pth, which is not in" in told.err
    assert main([*words, "--disc", "patch"]) == 0
    parts = [
        line for line in (told.out + capsys.readouterr().out).splitlines() if line.startswith("memory of an image")
    ]
    assert len(parts) == 2 and parts[0] != parts[1], "the two discriminators cost differently"
    assert not (tmp_path / "run").exists()
