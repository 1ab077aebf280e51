"""LPIPS from a local backbone: torchmetrics' numbers, nothing downloaded, one sentence for every wrong file."""

from __future__ import annotations

import copy
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from conftest import no_download
from torch import Tensor

from refocus_ext.errors import UsageError
from refocus_ext.tokenizer.losses import perceptual
from refocus_ext.tokenizer.losses.perceptual import LPIPS, VGG16_FILE, load_lpips

# Of torchvision's VGG16: index in `features` and channels of each convolution that LPIPS looks through.
CONVOLUTIONS = {
    0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """A random VGG16 without its classifier, in fp16, as lively as a trained one."""
    generator, before, state = torch.Generator().manual_seed(0), 3, {}
    for index, channels in CONVOLUTIONS.items():
        weight = torch.randn(channels, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        state[f"features.{index}.weight"] = weight.half()
        state[f"features.{index}.bias"] = 0.1 * torch.randn(channels, generator=generator).half()
        before = channels
    return state


@pytest.fixture(scope="module")
def weights(vgg16: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "backbone.pth"
    torch.save(vgg16, path)
    return path


@pytest.fixture(scope="module")
def lpips(weights: Path) -> LPIPS:
    """Loaded as a user's would be, and without any download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", no_download)
        return load_lpips(str(weights))


@pytest.fixture
def quick_build(lpips: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test the seconds that torchvision takes to initialise a VGG16."""
    blank = copy.deepcopy(lpips.network)
    for parameter in blank.get_submodule("net").parameters():
        parameter.zero_()
    monkeypatch.setattr(perceptual, "_untrained_network", lambda: blank)


def pair(size: int = 32, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return a, b


# ------------------------------------------------------------------------------------------------ the measure


def test_is_zero_for_equal_images_and_a_symmetric_distance_else(lpips: LPIPS) -> None:
    a, b = pair()
    assert lpips(a, a).tolist() == [0, 0]
    assert lpips(a, b).shape == (2,) and (lpips(a, b) > 1e-3).all()
    assert torch.allclose(lpips(a, b), lpips(b, a))
    assert (lpips(a, 0.9 * a + 0.1 * b) < lpips(a, b)).all()


def test_an_image_is_measured_alone(lpips: LPIPS) -> None:
    a, b = pair(batch=3)
    alone = torch.cat([lpips(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    assert torch.allclose(lpips(a, b), alone, rtol=1e-4)


def test_equals_torchmetrics_public_function_on_the_same_backbone(
    lpips: LPIPS, vgg16: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this project relies on in torchmetrics' private network: construction, names, heads, scaling."""
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity as public

    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    features.load_state_dict({name.removeprefix("features."): value for name, value in vgg16.items()})
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: SimpleNamespace(features=features))
    for a, b in zip(*(images.split(1) for images in pair()), strict=True):
        assert lpips(a, b).item() == public(a, b, net_type="vgg").item() > 0


def test_the_heads_are_the_trained_ones(lpips: LPIPS) -> None:
    """Zhang et al. constrain them to be non-negative, which random ones are not."""
    heads = [value for name, value in lpips.network.named_parameters() if name.startswith("lin")]
    assert len(heads) >= 5 and all((head >= 0).all() and head.any() for head in heads)


def test_gradient_reaches_the_image_and_nothing_else(lpips: LPIPS) -> None:
    a, b = pair()
    a.requires_grad_()
    lpips(a, b).mean().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in lpips.parameters())


def test_gradient_is_finite_where_the_images_are_equal(lpips: LPIPS) -> None:
    a = torch.zeros(1, 3, 32, 32, requires_grad=True)
    lpips(a, a.detach()).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_stays_in_eval_mode(lpips: LPIPS) -> None:
    a, b = pair()
    before = lpips(a, b)
    lpips.train()
    assert not any(module.training for module in lpips.modules())
    assert torch.equal(lpips(a, b), before), "dropout in the heads must never draw"


# ------------------------------------------------------------------------------------------------ its file


@pytest.mark.usefixtures("quick_build")
def test_torchvisions_whole_file_and_the_hub_folder_serve_as_well(
    lpips: LPIPS, vgg16: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    whole = vgg16 | {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    torch.save(whole, tmp_path / "checkpoints" / VGG16_FILE)
    a, b = pair()
    assert torch.equal(load_lpips("")(a, b), lpips(a, b))


@pytest.mark.parametrize("given", ["", "nowhere/vgg.pth"])
def test_a_missing_file_is_one_sentence_that_says_how_to_get_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_download)
    with pytest.raises(UsageError) as error:
        load_lpips(given)
    message = str(error.value)
    assert (given or str(tmp_path)) in message
    for remedy in (f"https://download.pytorch.org/models/{VGG16_FILE}", "--lpips-weights FILE"):
        assert remedy in message


class Payload:
    """A pickle that would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("quick_build")
@pytest.mark.parametrize("kind", ["text", "torn", "payload", "list", "other network", "other width"])
def test_a_foreign_file_is_refused(kind: str, vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    path, trap = tmp_path / "file.pth", tmp_path / "trap"
    if kind == "text":
        path.write_text("no weights")
    elif kind == "torn":
        torch.save(vgg16, path)
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        contents = {
            "payload": Payload(trap),
            "list": [torch.zeros(3)],
            "other network": {"layer1.weight": torch.zeros(3)},
            "other width": vgg16 | {"features.0.weight": torch.zeros(32, 3, 3, 3)},
        }
        torch.save(contents[kind], path)
    with pytest.raises(UsageError, match=r"file\.pth is not .*--lpips-weights FILE"):
        load_lpips(str(path))
    assert not trap.exists()
