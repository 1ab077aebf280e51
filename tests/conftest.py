"""Shared fixtures: tests that use a model run on whichever upstreams are there, and say so where one is missing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# One thread here and in the commands that tests start: the tensors are small, and the suite's processes fill the cores. A busy
# second core would stall every parallel region.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from patches import Focus, Upstream, load_upstream, submodule_present
from refocus_ext.optics.pyramid import FocusPyramid

# `nohup` and a shell's `&` leave these ignored, here and in the processes that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

PATCH_NUMS = (1, 2, 3, 4)
TESTS = Path(__file__).parent
# What `bash run.sh test --fast` runs: a minute or so of what most of the rest stands on.
FAST = (
    "test_cli.py",
    "options/test_options.py",
    "optics/",
    "images/test_data.py",
    "engine/test_checkpoint.py",
    "patches/test_focus_patch.py",
    "vanilla_var/",
    "tokenizer/test_alias_tokenizer.py",
    "distill/test_losses.py",
    "distill/test_teacher.py",
)
WITHOUT_SUBMODULE = "submodule var_upstream is not populated: runs on the stand-in only"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--fast", action="store_true", help="run a part of the suite that takes about a minute")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n auto`: one more than cores, since many tests wait for other processes; each takes up to 2 GiB."""
    return min(4, 1 + (os.cpu_count() or 1))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast the other files are not even imported."""
    if not config.getoption("--fast") or collection_path.is_dir():
        return None
    return None if collection_path.relative_to(TESTS).as_posix().startswith(FAST) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; `bash run.sh test --slow` runs it"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["submodule", "stand-in"])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    """Each implementation of VAR in turn."""
    if request.param == "submodule" and not submodule_present():
        pytest.skip(WITHOUT_SUBMODULE)
    return load_upstream(request.param)


@pytest.fixture
def pyramid() -> FocusPyramid:
    """The demo's pyramid: 64 px, K = 3, radii 6, 3, 0."""
    return FocusPyramid(image_size=64, states=3, rho_max=6.0)


def inside(model: Any) -> Any:
    """A model whose layers a test looks into; `patches.protocols` shows no more than the project uses."""
    return model


def no_download(*_: Any, **__: Any) -> NoReturn:
    """In the place of `urllib.request.urlopen`."""
    raise AssertionError("a download was attempted")


def small_vae(upstream: Upstream, seed: int = 0, **options: Any) -> Any:
    """A tiny VQVAE: 64 px, four token maps, 64 codes of 8 channels; its weights make lively latents and varied tokens."""
    torch.manual_seed(seed)
    geometry: dict[str, Any] = dict(vocab_size=64, z_channels=8, ch=32, patch_nums=PATCH_NUMS, test_mode=False)
    vae = upstream.build_vae(**(geometry | options))
    for module in vae.encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(module.weight.data, gain=1.4)
    vae.quant_conv.weight.data.mul_(2)
    return vae


@pytest.fixture
def vae(upstream: Upstream) -> Any:
    return small_vae(upstream)


@pytest.fixture
def focus_vae(vae: Any, pyramid: FocusPyramid) -> Any:
    Focus(pyramid).apply(vae)
    return vae


@pytest.fixture
def images() -> torch.Tensor:
    """Three smooth random images (3,3,64,64) in [-1,1]."""
    coarse = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)


def write_images(folder: Path, count: int, size: tuple[int, int] = (80, 72), seed: int = 0) -> None:
    """`count` JPEGs of smooth noise in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")


@pytest.fixture
def image_tree(tmp_path: Path) -> Iterator[Path]:
    """An ImageFolder of two classes: 6 training and 2 validation images each."""
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "data" / "train" / name, 6, seed=number)
        write_images(tmp_path / "data" / "val" / name, 2, seed=10 + number)
    yield tmp_path / "data"
