"""Stage 1 end to end at the smallest size: objective, codebook, run folder, interruption and resume to the bit."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import inside, small_vae
from runs import TINY
from torch import Tensor

from patches import Focus, Upstream, load_upstream
from refocus_ext import vector_quantization
from refocus_ext.commands import main
from refocus_ext.engine.checkpoints import load_checkpoint
from refocus_ext.engine.devices import DeviceKind
from refocus_ext.engine.optimization import warmup_cosine
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage.atomic import sha256
from refocus_ext.tokenizer import codebooks, prefixes
from refocus_ext.tokenizer.losses.objective import StructureObjective, StructureWeights
from refocus_ext.tokenizer.training import TokenizerTraining
from refocus_ext.tokenizer.validation import Validation


def train(data: Path, out: Path, *options: str) -> int:
    return main(["tokenizer", *TINY, "--data", str(data), "--out", str(out), *options])


def test_numbers_read_a_step_late_are_logged_as_others(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the same metrics and the same weights, and nothing is lost when the run is interrupted and resumed."""
    assert train(image_tree, tmp_path / "at once", "--picture-every", "4", "--save-every", "5") == 0
    monkeypatch.setattr(DeviceKind, "runs_behind", True)
    real = TokenizerTraining.train_step

    def interrupted(self: TokenizerTraining, step: int, batches: Any) -> Any:
        if step == 2 and not (tmp_path / "late" / "checkpoints").is_dir():
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, batches)

    monkeypatch.setattr(TokenizerTraining, "train_step", interrupted)
    assert train(image_tree, tmp_path / "late", "--picture-every", "4", "--save-every", "5") == 130
    assert train(image_tree, tmp_path / "late", "--picture-every", "4", "--save-every", "5") == 0
    names = ("metrics.jsonl", "vae.pth", "alias.pth")
    assert all((tmp_path / "late" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes() for name in names)


# ------------------------------------------------------------------------------------------------ objective


@pytest.fixture
def objective(focus_vae: Any) -> StructureObjective:
    return StructureObjective(focus_vae, StructureWeights(prefix=1)).train()


def test_loss_is_the_sum_of_its_logged_terms(objective: StructureObjective, images: Tensor) -> None:
    torch.manual_seed(0)
    out = objective(images, state=0)
    t = out.terms
    assert set(t) == {"recon", "prefix", "anchor", "commitment", "codebook"}
    expected = t["recon"] + t["prefix"] + t["anchor"] + 0.25 * t["commitment"] + t["codebook"]
    assert torch.allclose(out.loss, expected)
    assert [len(idx[0]) for idx in out.idx_S] == [1, 4, 9, 16]


def test_sharp_state_has_no_second_prefix(objective: StructureObjective, images: Tensor) -> None:
    assert "prefix" not in objective(images, state=2).terms


def test_a_term_of_weight_0_is_left_out(focus_vae: Any, images: Tensor) -> None:
    """In the warm-up as well, in which the anchor would otherwise train the blurred states."""
    objective = StructureObjective(focus_vae, StructureWeights(anchor=0)).train()
    torch.manual_seed(0)
    out = objective(images, state=0, quantize=False)
    assert set(out.terms) == {"recon"} and out.loss == out.recon
    assert set(objective(images, state=0).terms) == {"recon", "commitment", "codebook"}


def test_a_prefix_trains_the_decoder_alone(focus_vae: Any, images: Tensor) -> None:
    """The same value; the encoder's gradient is that of a run without prefixes, the decoder's is not."""
    found = []
    for weights in (StructureWeights(prefix=1, prefix_trains="all"), StructureWeights(prefix=1), StructureWeights()):
        torch.manual_seed(0)
        focus_vae.zero_grad()
        out = StructureObjective(focus_vae, weights).train()(images, state=0)
        out.loss.backward()
        model = inside(focus_vae)
        grads = [part.conv_in.weight.grad.clone() for part in (model.encoder, model.decoder)]
        found.append((out.terms.get("prefix"), *grads))
    (value, encoder, decoder), (same, alone, own), (_, without, bare) = found
    assert torch.equal(value, same) and not torch.allclose(encoder, alone)
    assert torch.allclose(alone, without, atol=1e-7) and torch.allclose(own, decoder, atol=1e-6)
    assert not torch.allclose(own, bare, atol=1e-6)


def test_the_warm_up_weighs_the_anchor(focus_vae: Any, images: Tensor) -> None:
    objective = StructureObjective(focus_vae, StructureWeights(anchor=0.25)).train()
    out = objective(images, state=1, quantize=False)
    assert set(out.terms) == {"recon", "anchor"}
    assert torch.allclose(out.loss, out.terms["recon"] + 0.25 * out.terms["anchor"])


def test_plain_var_has_neither_prefix_nor_anchor(vae: Any, images: Tensor) -> None:
    Focus(FocusPyramid(image_size=64, states=3, blur="none")).apply(vae)
    objective = StructureObjective(vae, StructureWeights()).train()
    assert set(objective(images, state=0).terms) == {"recon", "commitment", "codebook"}
    assert set(objective(images, state=0, quantize=False).terms) == {"recon"}


def test_warm_up_trains_no_codebook(objective: StructureObjective, images: Tensor) -> None:
    objective(images, state=1, quantize=False).loss.backward()
    quantizer: Any = objective.vae.quantize
    assert all(p.grad is None for p in quantizer.parameters())
    assert inside(objective.vae).encoder.conv_in.weight.grad.abs().sum() > 0


def test_psnr_by_hand() -> None:
    assert prefixes.psnr(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)).tolist() == pytest.approx([20, 20])


def test_code_health_by_hand() -> None:
    usage, perplexity = vector_quantization.codebook_use_of(torch.tensor([0, 0, 1, 1]), 8)
    assert usage == 25 and perplexity == pytest.approx(2)


def test_a_collapsed_scale_is_named() -> None:
    report = prefixes.PrefixReport(
        psnr_focus_K=[1.0], psnr_sharp_K=[1.0], usage_S=[1.0, 1.0, 9.0], perplexity_S=[1.1, 3.0, 40.0], usage_K=[9.0],
        tokens_S=[8, 200, 500],
    )  # fmt: skip
    (warning,) = report.collapsed(512)  # the first scale has too few tokens to judge, the third uses its codes
    assert warning.startswith("scale 2 has collapsed: its 200 tokens have a perplexity of 3.0 with")


def test_a_collapsed_scale_is_marked_in_the_metrics(focus_vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `status`, which cannot know how many tokens were seen; a healthy scale leaves the metrics as they were."""
    logged: dict[str, float] = {}
    run: Any = SimpleNamespace(log=lambda step, values, prefix: logged.update(values))
    averages: Any = SimpleNamespace(vae=focus_vae, alias=None)
    nothing: Any = SimpleNamespace(say=lambda text: None)
    report = prefixes.PrefixReport([20.0], [20.0], [1.0, 1.0], [40.0, 1.2], [1.0], tokens_S=[400, 400])
    monkeypatch.setattr("refocus_ext.tokenizer.validation.validate", lambda vae, batches: report)
    Validation(run, 1, nothing, averages, batch=1, most=1, held_out=True).prefixes(1, nothing)
    assert logged == report.flat() | {"collapsed_scale2": 1.0}


def test_validation_restores_the_mode_and_counts_states_from_one(objective: StructureObjective, images: Tensor) -> None:
    report = prefixes.validate(objective.vae, [images, images])
    assert objective.vae.training
    assert len(report.psnr_focus_K) == 3 and len(report.usage_S) == 4
    assert report.psnr_focus_K[2] == report.psnr_sharp_K[2], "the sharp state's view is the image itself"
    assert {"psnr_prefix1_F1", "psnr_prefix3_x", "usage_scale4"} <= set(report.flat())


# ------------------------------------------------------------------------------------------------ codebook


def test_initial_codebook_explains_the_data(upstream: Upstream, pyramid: FocusPyramid, images: Tensor) -> None:
    vae = small_vae(upstream)
    Focus(pyramid).apply(vae)
    for phi in vae.quantize.quant_resi.modules():
        if isinstance(phi, torch.nn.Conv2d):
            torch.nn.init.dirac_(phi.weight)
            phi.bias.data.zero_()  # type: ignore[union-attr]
    vae.eval()
    with torch.no_grad():
        targets = vae.encode_targets(images)
        variance = targets[-1].var()
        error = lambda: (vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=True)[-1] - targets[-1]).square().mean()  # noqa: E731
        before = error()
        codebooks.initialise_codebook(vae.quantize, targets, torch.Generator().manual_seed(0))
        assert error() < 0.35 * variance < before
    tokens = torch.cat([idx.flatten() for idx in vae.quantize.f_to_idxBl_or_fhat(targets, to_fhat=False)])
    assert len(tokens.unique()) > 32


def test_kmeans_finds_clusters_and_fills_up_when_points_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=generator)
    found = vector_quantization.kmeans(points, 8, generator)
    assert torch.cdist(centres, found).min(1).values.max() < 0.3
    assert vector_quantization.kmeans(points[:3], 5, generator).shape == (5, 2)


def test_revival_replaces_exactly_the_dead_codes(upstream: Upstream) -> None:
    quantizer = small_vae(upstream).quantize
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.1)
    quantizer.embedding.weight.sum().backward()
    optimizer.step()
    before = quantizer.embedding.weight.detach().clone()
    revival = codebooks.CodeRevival(quantizer)
    revival.count([torch.arange(60), torch.tensor([1, 2, 3])])
    pool = 100 + torch.rand(20, 8)
    assert revival.revive([pool[:5], pool[5:]], optimizer, torch.Generator().manual_seed(0)).tolist() == [
        60,
        61,
        62,
        63,
    ]
    changed = (quantizer.embedding.weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [60, 61, 62, 63]
    assert all(any(torch.equal(code, row) for row in pool) for code in quantizer.embedding.weight[60:])
    moments = optimizer.state[quantizer.embedding.weight]
    assert not moments["exp_avg"][60:].any() and moments["exp_avg"][:60].all()
    assert not revival.hits_V.any()


# ------------------------------------------------------------------------------------------------ the run


def test_a_run_leaves_what_its_folder_promises(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(image_tree, out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json",
        "classes.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "picture.png",
        "alias.png",
        "vae.pth",
        "alias.pth",
    }
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]
    config = json.loads((out / "config.json").read_text())
    assert config["pyramid"] == {
        "image_size": 32, "states": 2, "rho_max": 3.0, "blur": "disk", "noise_min": 1e-3, "noise_max": 1e-2, "stride": 16,
    }  # fmt: skip
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert any("val/psnr_prefix1_F1" in record for record in records)
    weights = torch.load(out / "vae.pth", weights_only=True)
    stock = load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
    assert list(weights) == list(stock.state_dict())
    stock.load_state_dict(weights, strict=True)
    printed = capsys.readouterr().out
    assert "prefix against F_k" in printed and "upstream: " in printed
    assert train(image_tree, out) == 0
    assert "already trained for 6 steps" in capsys.readouterr().out


def test_interrupted_and_resumed_equals_uninterrupted(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in step 3 saves and leaves with 143, Ctrl-C in step 5 with 130; the rest ends in the same bits."""
    assert train(image_tree, tmp_path / "whole") == 0
    real = TokenizerTraining.train_step

    def interrupted(self: TokenizerTraining, step: int, batches: Any) -> Any:
        if step in signals:
            os.kill(os.getpid(), signals.pop(step))
        return real(self, step, batches)

    signals = {2: signal.SIGTERM, 4: signal.SIGINT}
    monkeypatch.setattr(TokenizerTraining, "train_step", interrupted)
    assert train(image_tree, tmp_path / "parts") == 143
    assert "saved step 3; rerun the same command to resume" in capsys.readouterr().out
    assert train(image_tree, tmp_path / "parts") == 130
    assert train(image_tree, tmp_path / "parts") == 0
    assert "resuming after step 5" in capsys.readouterr().out
    for name in ("vae.pth", "alias.pth"):
        whole, parts = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    states = [load_checkpoint(next((tmp_path / r / "checkpoints").glob("step-00000006-*"))) for r in ("whole", "parts")]
    assert str(states[0]["optimizer"]["state"][0]) == str(states[1]["optimizer"]["state"][0])


def test_same_seed_same_bits_other_seed_other(image_tree: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(image_tree, tmp_path / name, "--seed", seed, "--steps", "3") == 0
    a, b, c = (torch.load(tmp_path / name / "vae.pth", weights_only=True) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["encoder.conv_in.weight"], c["encoder.conv_in.weight"])


def poison(monkeypatch: pytest.MonkeyPatch, poisoned_calls: set[int]) -> None:
    """Makes the loss of the given calls of the objective NaN, in value and gradient."""
    real, calls = StructureObjective.forward, iter(range(1000))

    def forward(self: StructureObjective, x: Tensor, state: int, quantize: bool = True) -> Any:
        out = real(self, x, state, quantize)
        if next(calls) in poisoned_calls:
            out.loss = out.loss * float("nan")
        return out

    monkeypatch.setattr(StructureObjective, "forward", forward)


def test_a_non_finite_step_is_skipped_without_a_trace(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(image_tree, tmp_path / "short", "--save-every", "1") == 0
    poison(monkeypatch, {5})  # the last step
    assert train(image_tree, tmp_path / "run", "--save-every", "1") == 0
    assert "step 6 skipped: its loss or gradient is not finite (images " in capsys.readouterr().out
    before, skipped = (
        load_checkpoint(next((tmp_path / name / "checkpoints").glob(f"step-0000000{step}-*")))
        for name, step in (("short", 5), ("run", 6))
    )
    weights = [key for key in before["vae"] if "ema_vocab_hit" not in key]  # the forward pass has counted its hits
    assert all(torch.equal(before["vae"][key], skipped["vae"][key]) for key in weights)
    assert str(before["optimizer"]["state"]) == str(skipped["optimizer"]["state"])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r.get("train/skipped")] == [6]


def test_non_finite_steps_in_a_row_stop_and_name_the_batch(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, set(range(3, 100)))
    assert train(image_tree, tmp_path / "run", "--steps", "20") == 1
    error = capsys.readouterr().err
    assert "not finite in 5 steps in a row; the last batch was " in error and ".jpg" in error
    weights = torch.load(tmp_path / "run" / "vae.pth", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_a_finished_run_is_left_as_it_is_and_a_lost_file_comes_back(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(image_tree, tmp_path / "run") == 0
    weights = [tmp_path / "run" / name for name in ("vae.pth", "alias.pth")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights]
    assert train(image_tree, tmp_path / "run") == 0  # typed again by mistake: students and caches go by the checksums
    assert "nothing to do" in capsys.readouterr().out
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in weights] == before
    weights[0].unlink()
    assert train(image_tree, tmp_path / "run") == 0
    assert [path.read_bytes() for path in weights] == [data for _, data in before]


def test_a_run_can_go_on_from_an_earlier_checkpoint(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--resume FILE`: what it leaves is set aside, what it writes is kept, and the same steps give the same weights."""
    run = tmp_path / "run"
    assert train(image_tree, run, "--steps", "6", "--save-every", "2") == 0
    weights = (run / "vae.pth").read_bytes()
    older, newer = sorted((run / "checkpoints").glob("step-*.pt"))
    capsys.readouterr()
    assert train(image_tree, run, "--steps", "6", "--save-every", "2", "--resume", str(older)) == 0
    said = capsys.readouterr().out
    assert f"1 newer checkpoint is in {run / 'checkpoints' / 'left'} now" in said and "resuming after step 4" in said
    assert (run / "checkpoints" / "left" / newer.name).is_file()
    kept = sorted(path.name[:13] for path in (run / "checkpoints").glob("step-*.pt"))
    assert kept == ["step-00000004", "step-00000006"]
    assert (run / "vae.pth").read_bytes() == weights


def test_truncated_images_are_replaced_named_and_counted(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [image_tree / "train" / "cat" / f"{i:03d}.jpg" for i in range(4)]
    truncate = lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])  # noqa: E731
    truncate(broken[0])
    assert train(image_tree, tmp_path / "run") == 0
    assert capsys.readouterr().out.count(f"broken image replaced: {broken[0]}") == 1
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["train/broken_images"] for r in records if "train/broken_images" in r][-1] == 1
    for path in broken[1:]:
        truncate(path)
    assert train(image_tree, tmp_path / "other") == 1
    assert "4 images of 12 cannot be decoded, more than the limit of 3" in capsys.readouterr().err


def test_a_loader_process_that_fails_is_one_sentence(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (image_tree / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert train(image_tree, tmp_path / "run", "--alias", "off", "--workers", "1") == 1
    error = capsys.readouterr().err
    assert error.startswith("refocus: ") and error.count("\n") == 1
    assert error.endswith("and the images after it cannot be decoded; check the folder.\n")


@pytest.mark.parametrize(
    "options",
    [
        ("--accumulate", "2"),
        ("--ema", "0.9", "--alias-codebook", "shared"),
        ("--precision", "bf16"),
        pytest.param(
            ("--precision", "fp16"), marks=pytest.mark.slow
        ),  # tests/rehearsal/test_mixed_precision.py has a faster one
        ("--blur", "none"),
        ("--blur", "sharp", "--alias-codebook", "shared-part", "--alias-codes", "16"),
        ("--views", "decimated", "--consistency", "0.5"),
    ],
)
def test_variants_train_and_resume(image_tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(image_tree, whole, *options) == 0
    assert train(image_tree, parts, *options, "--save-every", "1") == 0
    newest = sorted((parts / "checkpoints").glob("step-*"))[-1]
    newest.unlink()  # as if killed in the last step
    assert train(image_tree, parts, *options, "--save-every", "1") == 0
    for name in ("vae.pth", "alias.pth"):
        a, b = (torch.load(run / name, weights_only=True) for run in (whole, parts))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_alias_tokenizer_leaves_the_structure_tokenizer_alone(image_tree: Path, tmp_path: Path) -> None:
    assert train(image_tree, tmp_path / "with") == 0
    assert train(image_tree, tmp_path / "without", "--alias", "off") == 0
    a, b = (torch.load(tmp_path / name / "vae.pth", weights_only=True) for name in ("with", "without"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not (tmp_path / "without" / "alias.pth").exists()


def test_a_shared_codebook_is_trained_by_both(image_tree: Path, tmp_path: Path) -> None:
    assert train(image_tree, tmp_path / "own", "--steps", "3") == 0
    assert train(image_tree, tmp_path / "shared", "--steps", "3", "--alias-codebook", "shared") == 0
    own, shared = (torch.load(tmp_path / name / "vae.pth", weights_only=True) for name in ("own", "shared"))
    assert not torch.equal(own["quantize.embedding.weight"], shared["quantize.embedding.weight"])
    assert not any("codebook" in key for key in torch.load(tmp_path / "shared" / "alias.pth", weights_only=True))


def test_the_adversary_starts_when_told_and_resumes(image_tree: Path, tmp_path: Path) -> None:
    options = ("--gan", "0.4", "--gan-start", "0.5", "--gan-warmup", "2", "--lecam", "0.001", "--save-every", "1")
    assert train(image_tree, tmp_path / "whole", *options) == 0
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in records if "train/gan" in r]
    assert steps == [4, 5, 6] == [r["step"] for r in records if "train/critic" in r]
    assert all(r["train/gan_weight"] >= 0.1 for r in records if "train/gan" in r)
    assert train(image_tree, tmp_path / "parts", *options) == 0
    sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[-1].unlink()
    assert train(image_tree, tmp_path / "parts", *options) == 0
    a, b = (
        load_checkpoint(next((tmp_path / name / "checkpoints").glob("step-00000006-*"))) for name in ("whole", "parts")
    )
    for part in ("vae", "adversary"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert train(image_tree, tmp_path / "without") == 0
    plain = torch.load(tmp_path / "without" / "vae.pth", weights_only=True)
    assert not torch.equal(plain["encoder.conv_in.weight"], a["vae"]["encoder.conv_in.weight"])


def test_lpips_without_its_network_says_how_to_get_it(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    assert train(image_tree, tmp_path / "run", "--lpips", "1") == 2
    error = capsys.readouterr().err
    assert "vgg16-397923af.pth" in error and "--lpips 0" in error and not (tmp_path / "run").exists()


def test_lpips_is_part_of_the_loss(image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Distance(torch.nn.Module):
        def forward(self, image: Tensor, target: Tensor) -> Tensor:
            return (image - target).abs().flatten(1).mean(1) + 2

    monkeypatch.setattr("refocus_ext.tokenizer.losses.perceptual.load_lpips", lambda weights, device: Distance())
    assert train(image_tree, tmp_path / "run", "--lpips", "3") == 0
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    terms = [first[f"train/{name}"] for name in ("recon", "lpips")]
    assert terms[1] > 2
    assert first["train/loss"] == pytest.approx(terms[0] + first.get("train/anchor", 0) + 3 * terms[1], rel=1e-4)


def test_dry_run_counts_flops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "--dry-run"]) == 0
    assert "GFLOP per image (encoder 3 x 0.5, decoder" in capsys.readouterr().out


def test_accumulation_sums_to_the_same_gradient(image_tree: Path, tmp_path: Path) -> None:
    """Without noise two micro-batches of two are one batch of four, up to rounding."""
    options = ("--noise-max", "0", "--noise-min", "0", "--steps", "3", "--warm-autoencoder", "2")
    assert train(image_tree, tmp_path / "one", *options) == 0
    assert train(image_tree, tmp_path / "two", *options, "--accumulate", "2") == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[:2] for name in ("one", "two")]
    for one, two in zip(*logs, strict=True):
        a, b = json.loads(one), json.loads(two)
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)


def test_init_starts_from_published_weights(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
    torch.save(published.state_dict(), tmp_path / "vae.pth")
    options = ("--init", str(tmp_path / "vae.pth"), "--steps", "1", "--lr", "1e-9")
    assert train(image_tree, tmp_path / "run", *options) == 0
    weights = torch.load(tmp_path / "run" / "vae.pth", weights_only=True)
    for key, value in published.state_dict().items():
        assert torch.allclose(weights[key], value, atol=1e-6) or "ema_vocab_hit" in key, key
    capsys.readouterr()
    assert train(image_tree, tmp_path / "other", *options, "--codebook-size", "32") == 2
    assert "does not fit this tokenizer" in capsys.readouterr().err


def test_weights_carry_their_checksum(image_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(image_tree, out, "--steps", "3") == 0
    recorded = json.loads((out / "config.json").read_text())["weights"]
    assert recorded == {name: sha256(out / name) for name in ("vae.pth", "alias.pth")}
    (out / "vae.pth").write_bytes(b"torn")  # a kill between checkpoint and weights
    assert train(image_tree, out, "--steps", "3") == 0
    assert (
        sha256(out / "vae.pth")
        == recorded["vae.pth"]
        == json.loads((out / "config.json").read_text())["weights"]["vae.pth"]
    )


def test_resume_never_starts_afresh_and_keeps_the_old_run(image_tree: Path, tmp_path: Path) -> None:
    assert train(image_tree, tmp_path / "run", "--steps", "3") == 0
    old = (tmp_path / "run" / "vae.pth").read_bytes()
    assert train(image_tree, tmp_path / "run", "--steps", "3", "--resume", "never", "--seed", "4") == 0
    assert (tmp_path / "run.1" / "vae.pth").read_bytes() == old
    assert (tmp_path / "run" / "vae.pth").read_bytes() != old


def test_short_training_orders_the_prefixes(tmp_path: Path) -> None:
    """A prefix is nearer to its focus state than to the image, and nearer to the image the sharper its state."""
    geometry = "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 4 --codebook-size 64"
    steps = "--steps 150 --warm-autoencoder 75 --picture-every 150 --save-every 150 --lr 1e-3"
    assert main(["tokenizer", "--out", str(tmp_path / "run"), *geometry.split(), *steps.split()]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    report = next(record for record in reversed(records) if "val/psnr_prefix1_x" in record)
    assert report["val/psnr_prefix1_F1"] > report["val/psnr_prefix1_x"] + 1
    assert report["val/psnr_prefix2_x"] > report["val/psnr_prefix1_x"] + 0.05


# ------------------------------------------------------------------------------------------------ the same run


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the step after `step` steps, once."""
    real = TokenizerTraining.train_step
    signals = {step - 1}

    def interrupted(self: TokenizerTraining, number: int, batches: Any) -> Any:
        if number in signals:
            signals.remove(number)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, batches)

    monkeypatch.setattr(TokenizerTraining, "train_step", interrupted)


def test_a_run_goes_on_where_it_computes_the_same(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A moved data set, other spellings of it, other micro-batches and a raised precision."""
    out = tmp_path / "run"
    interrupt_after(2, monkeypatch)
    assert train(image_tree, out, "--precision", "bf16") == 143
    moved = image_tree.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    monkeypatch.chdir(tmp_path)
    interrupt_after(4, monkeypatch)
    capsys.readouterr()
    assert train(Path("link/"), out, "--precision", "fp32", "--accumulate", "2", "--workers", "1") == 143
    said = capsys.readouterr().out
    assert "note: the same run as before, but for data = link" in said and "with the same contents" in said
    assert "precision = fp32 (was bf16)" in said and "accumulate = 2 (was 1)" in said and "workers = 1 (was 0)" in said
    before = (out / "config.json").read_text()
    assert train(moved, out, "--precision", "fp16") == 2
    assert "precision = fp32, this one has fp16" in capsys.readouterr().err
    assert train(moved, out, "--lr", "0.5") == 2
    (moved / "train" / "cat" / "zz.png").write_bytes(next((moved / "train" / "dog").iterdir()).read_bytes())
    assert train(moved, out) == 2
    assert "data = " in capsys.readouterr().err and (out / "config.json").read_text() == before
    (moved / "train" / "cat" / "zz.png").unlink()
    assert train(Path("moved"), out, "--precision", "fp32") == 0


def test_init_may_be_gone_once_it_is_not_needed(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(image_tree, tmp_path / "first") == 0
    weights = tmp_path / "first" / "vae.pth"
    init, out = tmp_path / "init.pth", tmp_path / "run"
    init.write_bytes(weights.read_bytes())
    interrupt_after(2, monkeypatch)
    assert train(image_tree, out, "--init", str(init)) == 143
    interrupt_after(3, monkeypatch)
    assert train(image_tree, out, "--init", str(init.rename(tmp_path / "moved.pth"))) == 143
    (tmp_path / "moved.pth").unlink()
    assert train(image_tree, tmp_path / "other", "--init", str(tmp_path / "moved.pth")) == 2
    assert "is not a file" in capsys.readouterr().err
    kept = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    for path in kept:
        path.write_bytes(b"damaged")
    assert train(image_tree, out, "--init", str(tmp_path / "moved.pth")) == 1
    assert "put that file back" in capsys.readouterr().err
    for path, content in kept.items():
        path.write_bytes(content)
    assert train(image_tree, out, "--init", str(tmp_path / "moved.pth")) == 0


def test_an_extended_run_is_one_run_to_the_bit(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        assert train(image_tree, out, "--warmup", "1") == 0
    capsys.readouterr()
    assert train(image_tree, whole, "--steps", "10") == 2
    refused = sentence(capsys)
    assert "steps = 6, this one has 10" in refused and "(the learning-rate schedule depends on the steps)" in refused
    assert "--extend to train that run for more steps" in refused
    assert train(image_tree, whole, "--steps", "4", "--extend") == 2
    assert "--extend cannot lower the 6 steps" in sentence(capsys)
    assert train(image_tree, tmp_path / "none", "--extend") == 2 and not (tmp_path / "none").exists()
    assert train(image_tree, whole, "--warmup", "1", "--steps", "10", "--extend") == 0
    assert "steps = 10 from step 6 on (was 6)" in capsys.readouterr().out
    interrupt_after(8, monkeypatch)
    assert train(image_tree, parts, "--warmup", "1", "--steps", "10", "--extend") == 143
    assert train(image_tree, parts, "--warmup", "1", "--steps", "10") == 0  # without --extend
    configs = [json.loads((run / "config.json").read_text()) for run in (whole, parts)]
    assert all(c["schedule"] == [{"from_step": 0, "steps": 6}, {"from_step": 6, "steps": 10}] for c in configs)
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, parts)]
    assert logs[0] == logs[1]
    for name in ("vae.pth", "alias.pth"):
        states = [torch.load(run / name, weights_only=True) for run in (whole, parts)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rates = [record["train/lr"] for record in logs[0] if "train/lr" in record]
    peak = max(rates)
    expected = [warmup_cosine(s, 6, 1, 0.05) for s in range(6)] + [warmup_cosine(s, 10, 1, 0.05) for s in range(6, 10)]
    assert rates == pytest.approx([peak * factor for factor in expected])


def test_out_of_memory_is_arithmetic_and_a_command(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = StructureObjective.forward, iter(range(100))

    def full(self: StructureObjective, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise errors.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StructureObjective, "forward", full)
    errors: list[BaseException] = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
    assert train(image_tree, tmp_path / "run", "--accumulate=1") == 1
    said = sentence(capsys)
    assert "out of memory on cpu in step 4: a micro-batch of 4 images took " in said
    assert "--accumulate 2 makes that 2, about " in said and "The last checkpoint is intact" in said
    command = said[said.index("bash run.sh tokenizer") :].strip()
    assert command.endswith("--accumulate 2") and "--accumulate=1" not in command
    assert main(shlex.split(command)[2:]) == 0
    calls = iter(range(100))
    errors.append(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"))
    assert train(image_tree, tmp_path / "ones", "--batch-size", "1") == 1
    said = sentence(capsys)
    assert "a micro-batch of 1 image took" in said and said.endswith("--grad-checkpoint")
    calls = iter(range(100))
    errors.append(MemoryError())
    assert train(image_tree, tmp_path / "ones", "--batch-size", "1", "--grad-checkpoint") == 1
    assert "It cannot be smaller" in sentence(capsys)
    calls = iter(range(100))
    errors.append(MemoryError())
    assert train(image_tree, tmp_path / "more", "--accumulate", "auto") == 1
    said = sentence(capsys)
    assert "out of memory" in said and said.endswith("--accumulate 2") and "--accumulate auto" not in said
    calls = iter(range(100))
    errors.append(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        train(image_tree, tmp_path / "bug")


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr since the last call."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--lpips", "1", "--lpips-weights", "/nowhere/vgg.pth"), "/nowhere/vgg.pth"),
        (("--out", "another"), "holds a run with"),
        (("--batch-size", "99"), "larger than the data set"),
        (("--extend",), "holds none to continue"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "another" / "checkpoints").mkdir(parents=True)
    (tmp_path / "another" / "config.json").write_text('{"command": "tokenizer", "identity": {"lr": 5}}')
    (tmp_path / "another" / "metrics.jsonl").write_text('{"step": 1}')
    before = sorted(tmp_path.rglob("*"))
    for mode in (["--dry-run"], []):
        assert main(["tokenizer", *TINY, "--data", str(image_tree), "--out", "run", *words, *mode]) == 2
        assert text in sentence(capsys)
        assert (
            main(["--preflight", "1", "tokenizer", *TINY, "--data", str(image_tree), "--out", "run", *words, *mode])
            == 2
        )
        assert text in sentence(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_refuses_a_full_disk_and_a_batch_that_does_not_divide(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", *TINY, "--data", str(image_tree), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(["--preflight", "3", *words]) == 2 and "choose a multiple of 3" in sentence(capsys)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(words) == 2 and "0.00 GiB free, but checkpoints and weights" in sentence(capsys)
    assert not (tmp_path / "run").exists()
