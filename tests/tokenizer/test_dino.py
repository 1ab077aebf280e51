"""The discriminator on DINO's features: which file it takes, what it trains, and what no pass changes."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import no_download
from runs import TINY
from torch import Tensor, nn

from refocus_ext.commands import main
from refocus_ext.engine.distributed import World
from refocus_ext.engine.memory.pass_cost import Input, pass_cost
from refocus_ext.errors import UsageError
from refocus_ext.tokenizer.losses import dino
from refocus_ext.tokenizer.losses.adversarial import Adversary
from refocus_ext.tokenizer.losses.critic import Critic
from refocus_ext.tokenizer.losses.dino import DINO_URL, DinoDiscriminator, load_dino, untrained_dino
from refocus_ext.tokenizer.recipe import CriticRecipe

WIDTH = 64
GOES = torch.tensor(False)
GAN = "--gan 0.4 --gan-start 0.4 --gan-warmup 2 --disc dino".split()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of DINO's shape and names, but a sixth of its width."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "tiny.pth"
    torch.save(untrained_dino(WIDTH).state_dict(), path)
    return path


def adversary(weights: Path, size: int = 64, augments: bool = False) -> Adversary:
    torch.manual_seed(1)
    return Adversary(size, backbone=load_dino(str(weights)), augments=augments)


def images(seed: int, count: int = 2, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def heads_of(part: Adversary) -> nn.Module:
    assert isinstance(part.discriminator, DinoDiscriminator)
    return part.discriminator.heads


# ------------------------------------------------------------------------------------------------ the network


def test_every_token_of_every_tap_has_a_logit(weights: Path) -> None:
    discriminator = adversary(weights).discriminator
    for size, tokens in ((32, 4), (64, 16), (224, 196), (256, 196)):
        assert discriminator(images(0, 1, size)).shape == (1, 4 * tokens)
    with pytest.raises(ValueError, match="at least 32 px, got 16"):
        discriminator(images(0, 1, 16))


def test_features_are_those_of_the_blocks_on_imagenets_scale(weights: Path) -> None:
    """Against the ViT called by hand at the size of its position embedding."""
    discriminator = adversary(weights, 224).discriminator
    assert isinstance(discriminator, DinoDiscriminator)
    image, vit = images(1, 1, 224), discriminator.backbone
    seen: list[Tensor] = []
    blocks: Any = vit.get_submodule("blocks")
    for tap in (2, 5, 8, 11):
        blocks[tap].register_forward_hook(lambda _, __, output: seen.append(output))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    vit((image / 2 + 0.5 - mean) / std)
    expected = [(x[:, 1:] + x[:, :1]).transpose(1, 2) for x in seen]
    for ours, theirs in zip(discriminator.features(image), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_images_do_not_see_each_other(weights: Path) -> None:
    discriminator = adversary(weights).discriminator
    batch = images(2, 3)
    assert torch.allclose(discriminator(batch), torch.cat([discriminator(x[None]) for x in batch]), atol=1e-4)


def test_large_images_are_cropped_or_averaged_at_random_and_averaged_in_eval_mode(weights: Path) -> None:
    discriminator = adversary(weights, 256).discriminator
    assert isinstance(discriminator, DinoDiscriminator)
    image = images(3, 2, 256)
    averaged = nn.functional.interpolate(image, size=(224, 224), mode="area")
    windows = image.unfold(2, 224, 1).unfold(3, 224, 1)
    torch.manual_seed(0)
    views = [discriminator._viewed(image) for _ in range(20)]
    crops = [view for view in views if not torch.equal(view, averaged)]
    assert 4 < len(crops) < 16
    places = {tuple((windows == crop[:, :, None, None]).all((0, 1, 4, 5)).nonzero()[0].tolist()) for crop in crops}
    assert len(places) > 3
    assert all(torch.equal(discriminator.eval()._viewed(image), averaged) for _ in range(5))


def test_spectral_norms_bound_every_layer(weights: Path) -> None:
    """After some steps of power iteration, the largest singular value is 1."""
    part = adversary(weights)
    for _ in range(50):
        part.begin_step()
    layers = [layer for layer in heads_of(part).modules() if isinstance(layer, nn.Conv1d)]
    assert len(layers) == 12
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


# ------------------------------------------------------------------------------------------------ what is trained


def test_the_generators_loss_reaches_the_images_and_nothing_else(weights: Path) -> None:
    part = adversary(weights, augments=True)
    before = {name: tensor.clone() for name, tensor in (*part.named_parameters(), *part.named_buffers())}
    fake = images(4).requires_grad_()
    part.generator_loss(fake).backward()
    assert fake.grad is not None and (fake.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in part.parameters())
    after = dict((*part.named_parameters(), *part.named_buffers()))
    assert all(torch.equal(before[name], after[name]) for name in before), "no power iteration"


def test_the_critics_loss_reaches_the_heads_and_nothing_else(weights: Path) -> None:
    part = adversary(weights)
    real, fake = images(5).requires_grad_(), images(6).requires_grad_()
    part(real, fake)[0].backward()
    assert real.grad is None and fake.grad is None
    trained = {name for name, parameter in part.named_parameters() if parameter.grad is not None}
    assert trained == {f"discriminator.heads.{name}" for name, _ in heads_of(part).named_parameters()}


def test_the_backbone_is_frozen_in_eval_mode_and_not_in_the_state_dict(weights: Path) -> None:
    part = adversary(weights).train()
    assert isinstance(part.discriminator, DinoDiscriminator)
    backbone = part.discriminator.backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    state = part.state_dict()
    assert state and not [name for name in state if "backbone" in name]
    other = adversary(weights)
    part.begin_step()
    other.load_state_dict(part.state_dict(), strict=True)
    assert torch.equal(other.discriminator(images(7)), part.discriminator(images(7)))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if "heads.3" not in name})


def critic(weights: Path, **adamw: Any) -> Critic:
    torch.manual_seed(0)
    recipe = CriticRecipe(weight=0.4, start=0.0, augment=True, lecam=0.1)
    world, backbone = World(0, 1, torch.device("cpu")), load_dino(str(weights))
    return Critic(recipe, 10, 64, world, 1e-3, 1.0, torch.float32, backbone, **adamw)


def test_the_optimizer_has_the_heads_alone_and_decays_their_kernels(weights: Path) -> None:
    part = critic(weights, weight_decay=0.1)
    decayed, others = part.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    heads = {id(p): p.ndim for p in heads_of(part.adversary).parameters()}
    assert {id(p) for group in (decayed, others) for p in group["params"]} == set(heads)
    assert {heads[id(p)] for p in decayed["params"]} == {3} and {heads[id(p)] for p in others["params"]} == {1}


def test_its_checkpoint_goes_on_to_the_bit(weights: Path) -> None:
    """With the random numbers of the training loop, which seeds every step."""
    whole, begun, resumed = critic(weights), critic(weights), critic(weights)

    def take(part: Critic, step: int) -> None:
        torch.manual_seed(step)
        part.train_step([images(step)], [images(step + 10)], 1.0, GOES)

    for step in range(3):
        take(whole, step)
    take(begun, 0)
    resumed.load_state_dict(begun.state_dict())
    for step in (1, 2):
        take(resumed, step)
    ours, theirs = whole.adversary.state_dict(), resumed.adversary.state_dict()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    first = critic(weights).adversary.state_dict()
    assert any(not torch.equal(ours[name], first[name]) for name in ours if name.endswith("_u")), "norms iterate"


def test_a_few_steps_tell_flat_images_from_rough_ones(weights: Path) -> None:
    part = adversary(weights)
    optimizer = torch.optim.AdamW([p for p in part.parameters() if p.requires_grad], lr=1e-2)
    real, fake = images(8, 4), torch.zeros(4, 3, 64, 64)
    losses = []
    for _ in range(30):
        part.begin_step()
        loss, _ = part(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]


def test_bf16_computes_the_norms_in_fp32(weights: Path) -> None:
    part = adversary(weights)
    real = images(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = part(real, -real)
    whole, _ = part(real, -real)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(whole.item(), abs=0.05)


def test_its_cost_is_that_of_its_passes(weights: Path) -> None:
    """Counted on "meta", as the plan does: the backbone keeps activations in the generator's loss only."""
    with torch.device("meta"):
        part = Adversary(64, backbone=untrained_dino(WIDTH), augments=True).eval()
    image = (3, 64, 64)
    generator = pass_cost(part, Input(image, grad=True), call=Adversary.generator_loss)
    own = pass_cost(part, Input(image), Input(image))
    assert own.flops == pytest.approx(2 * generator.flops, rel=0.01)
    tokens = 4 * 17 * WIDTH * 12  # bytes of one feature map, times the blocks
    assert generator.saved_bytes > 10 * tokens
    heads_and_images = own.saved_bytes
    assert heads_and_images < generator.saved_bytes


# ------------------------------------------------------------------------------------------------ the file


def test_facebooks_state_dict_and_timms_are_the_same(weights: Path, tmp_path: Path) -> None:
    """Facebook's DINO names the tensors of ViT-S/16 as timm does: these are its names and shapes."""
    names = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "norm.weight": (384,), "norm.bias": (384,)}
    names |= {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}
    for block in range(12):
        for part, shape in {
            "norm1.weight": (384,), "norm1.bias": (384,), "norm2.weight": (384,), "norm2.bias": (384,),
            "attn.qkv.weight": (1152, 384), "attn.qkv.bias": (1152,), "attn.proj.weight": (384, 384),
            "attn.proj.bias": (384,), "mlp.fc1.weight": (1536, 384), "mlp.fc1.bias": (1536,),
            "mlp.fc2.weight": (384, 1536), "mlp.fc2.bias": (384,),
        }.items():  # fmt: skip
            names[f"blocks.{block}.{part}"] = shape
    path = tmp_path / "facebook.pth"
    torch.save({name: torch.full(shape, 0.01, dtype=torch.half) for name, shape in names.items()}, path)
    loaded = load_dino(str(path)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == names
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert loaded["blocks.11.mlp.fc2.weight"].unique().item() == pytest.approx(0.01, abs=1e-4)


def test_it_is_found_in_torch_hubs_folder_and_never_downloaded(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match=r"needs dino_deitsmall16_pretrain\.pth, which is not in") as missing:
        load_dino("")
    assert DINO_URL in str(missing.value) and "--disc-weights FILE" in str(missing.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / dino.DINO_FILE).write_bytes(weights.read_bytes())
    assert load_dino("").state_dict()["cls_token"].shape[-1] == WIDTH


@pytest.mark.parametrize("kind", ["text", "other", "incomplete"])
def test_another_file_is_refused_in_one_sentence(kind: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    state = torch.load(weights, weights_only=True)
    if kind == "text":
        path.write_text("hello")
    else:
        torch.save(
            {"a": torch.zeros(2)} if kind == "other" else {k: v for k, v in state.items() if "blocks.11" not in k}, path
        )
    with pytest.raises(UsageError, match=r"file\.pth is not .*--disc-weights FILE\.$"):
        load_dino(str(path))


def test_without_timm_it_says_so(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="needs the package timm, which is not installed here"):
        load_dino(str(weights))


# ------------------------------------------------------------------------------------------------ the command


def train(data: Path, out: Path, *options: str) -> int:
    return main(["tokenizer", *TINY, "--data", str(data), "--out", str(out), *options])


def test_a_run_resumes_to_the_bit(
    image_tree: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its own weights, DiffAug, dropout and decay groups, interrupted after the critic has begun."""
    words = [*GAN, "--disc-weights", str(weights), "--disc-augment", "on", "--dropout", "0.1", "--weight-decay", "0.05"]
    words += ["--ema", "0.9", "--save-every", "1", "--lecam", "0.1"]
    assert train(image_tree, tmp_path / "whole", *words) == 0
    assert train(image_tree, tmp_path / "parts", *words) == 0
    for path in (tmp_path / "parts" / "checkpoints").glob("step-00000006-*"):
        path.unlink()
    (tmp_path / "parts" / "vae.pth").unlink()
    assert train(image_tree, tmp_path / "parts", *words) == 0
    for name in ("metrics.jsonl", "vae.pth", "alias.pth"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    (last,) = (tmp_path / "whole" / "checkpoints").glob("step-00000006-*.pt")
    state = torch.load(last, weights_only=True)
    assert not [name for name in state["adversary"] if "backbone" in name]
    # the same file elsewhere is the same network; another network under the same name is refused, also by a plan
    torch.manual_seed(1)
    elsewhere = tmp_path / "elsewhere.pth"
    for other, code in ((torch.load(weights, weights_only=True), 0), (untrained_dino(WIDTH).state_dict(), 2)):
        torch.save(other, elsewhere)
        for mode in ([], ["--dry-run"]):
            assert train(image_tree, tmp_path / "parts", *words, "--disc-weights", str(elsewhere), *mode) == code
            assert ("disc_weights = a network of checksum" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize("mode", ["--dry-run", ""])
def test_missing_weights_are_refused_before_any_work(
    mode: str, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--data", str(image_tree), "--out", str(tmp_path / "run"), *GAN, "--disc-weights", "nowhere.pth"]
    words += [mode] if mode else []
    for before in ([], ["--preflight", "1"]):
        assert main([*before, "tokenizer", *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (
            "but nowhere.pth is not a file" in line
            and DINO_URL in line
            and "(or train with PatchGAN: --disc patch)" in line
        )
    assert not (tmp_path / "run").exists()


def test_two_processes_are_one_run(image_tree: Path, tmp_path: Path, weights: Path) -> None:
    """The critic under DistributedDataParallel, with accumulated micro-batches: its losses are those of one process."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    words = [*TINY, *GAN, "--disc-weights", str(weights), "--noise-min", "0", "--noise-max", "0", "--revive", "0"]
    words += ["--data", str(image_tree), "--workers", "0"]
    losses = []
    for processes, more in ((1, []), (2, ["--accumulate", "2"])):
        out = tmp_path / str(processes)
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "refocus_ext"]
        command = [sys.executable, "-m", *launch, "tokenizer", *words, "--out", str(out), *more]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=300)
        assert ended.returncode == 0, ended.stderr
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["train/critic"] for record in records if "train/critic" in record])
    assert len(losses[0]) > 2 and losses[0] == pytest.approx(losses[1], rel=1e-2)
