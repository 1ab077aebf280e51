"""The token cache: its tokens, its identity, and everything that can happen to its files."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from conftest import small_vae, write_images
from runs import TINY, TRAINED_WITH, run_main
from torch import Tensor
from torch.utils.data import DataLoader

from patches import Focus, Upstream
from refocus_ext.engine.devices import DeviceKind
from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.life_sign import FILE, LifeSign
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import StepBatches
from refocus_ext.images.sources import kinds as sources
from refocus_ext.images.sources.folder import ImageList, image_folder
from refocus_ext.images.sources.interface import ImageSource, identity_of
from refocus_ext.images.views import ViewCrops, ViewPlan
from refocus_ext.optics.pyramid import FocusPyramid, alias_views
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokens import builder, index, shards
from refocus_ext.tokens.cache import CacheSource, TokenCache, build_cache, open_cache
from refocus_ext.tokens.shards import layout_of
from refocus_ext.tokens.tokenize import pick_precision, prepare, split_maps, tokenize, tokenize_images
from refocus_ext.tokens.trained_tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))
PLAN = ViewPlan(crops=2, hflip=True, seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps, and the 12 images it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    for number, name in enumerate(("cat", "dog")):
        write_images(folder / "data" / "train" / name, 6, size=(60, 40), seed=number)
        write_images(folder / "data" / "val" / name, 2, size=(60, 40), seed=10 + number)
    assert run_main("tokenizer", *TINY, "--data", str(folder / "data"), "--out", str(folder / "run")) == 0
    return folder


@pytest.fixture
def tokenizer(trained: Path) -> Tokenizer:
    return load_tokenizer(trained / "run")


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may spoil."""
    return Path(shutil.copytree(trained / "data", tmp_path / "data"))


@pytest.fixture
def images(data: Path) -> ImageList:
    return image_folder(str(data), "train")


def build(folder: Path, tokenizer: Tokenizer, images: ImageList, plan: ViewPlan = PLAN, **options: Any) -> Any:
    """Four shards of 3 images, by default; batches of 2 images with their 4 views."""
    settings: dict[str, Any] = dict(scale=1.25, precision="fp32", batch_size=8, shard_images=3, world=ALONE) | options
    source = CacheSource(tokenizer, images, plan, settings.pop("scale"), settings.pop("precision"))
    with Interruption() as interruption:
        return build_cache(folder, source, settings.pop("world"), interruption=interruption, **settings)


def reopen(folder: Path, tokenizer: Tokenizer, images: ImageList, plan: ViewPlan = PLAN, **options: Any) -> TokenCache:
    settings: dict[str, Any] = dict(scale=1.25, precision="fp32", world=ALONE) | options
    source = CacheSource(tokenizer, images, plan, settings.pop("scale"), settings.pop("precision"))
    return open_cache(folder, source, settings.pop("world"), **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.npy"))}


# ------------------------------------------------------------------------------------------------ tokenize


@pytest.fixture
def small(upstream: Upstream, pyramid: FocusPyramid, tmp_path: Path) -> Tokenizer:
    """Both tokenizers, untrained, on each implementation of VAR."""
    vae = small_vae(upstream)
    Focus(pyramid).apply(vae)
    alias = AliasTokenizer(AliasGeometry.of(pyramid, stride=8, codes=32, width=16))
    return prepare(Tokenizer(vae, alias, pyramid, {}, TRAINED_WITH, tmp_path))


def test_tokens_are_those_of_the_tokenizers_own_methods(small: Tokenizer, images_BCHW: Tensor) -> None:
    assert small.alias is not None
    structure, alias = tokenize(small, images_BCHW)
    assert structure.shape == (3, 30) and alias.shape == (3, 5 * 4) and structure.dtype == alias.dtype == torch.int64
    own = small.vae.img_to_idxBl(images_BCHW), small.alias.tokens(alias_views(small.pyramid, images_BCHW))
    maps = split_maps(structure, small.vae.quantize.v_patch_nums), split_maps(alias, small.alias.geometry.grids)
    for ours, theirs in zip(maps, own, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(structure.unique()) > 8 and len(alias.unique()) > 2


@pytest.fixture
def images_BCHW() -> Tensor:
    coarse = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)


def test_without_an_alias_tokenizer_there_are_no_alias_tokens(small: Tokenizer, images_BCHW: Tensor) -> None:
    structure, alias = tokenize(dataclasses.replace(small, alias=None), images_BCHW)
    assert torch.equal(structure, tokenize(small, images_BCHW)[0]) and alias.shape == (3, 0)


def test_plain_var_tokens_are_upstreams(upstream: Upstream, tmp_path: Path, images_BCHW: Tensor) -> None:
    vae, plain = small_vae(upstream).eval(), FocusPyramid(image_size=64, states=3, blur="none")
    expected = torch.cat(vae.img_to_idxBl(images_BCHW), dim=1)
    Focus(plain).apply(vae)
    assert torch.equal(tokenize(Tokenizer(vae, None, plain, {}, TRAINED_WITH, tmp_path), images_BCHW)[0], expected)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_precision_is_the_encoders_alone_and_settings_return(
    small: Tokenizer, images_BCHW: Tensor, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    settings = lambda: (  # noqa: E731
        torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu"),
    )  # fmt: skip
    encode, quantize = small.vae.encode_targets, small.vae.quantize.f_to_idxBl_or_fhat

    def watched_encode(x: Tensor) -> Any:
        seen["encode"] = settings()
        return encode(x)

    def watched_quantize(targets: list[Tensor], to_fhat: bool) -> Any:
        seen["quantize"] = settings()
        assert all(T.dtype == torch.float32 for T in targets)
        return quantize(targets, to_fhat=to_fhat)

    monkeypatch.setattr(small.vae, "encode_targets", watched_encode)
    monkeypatch.setattr(small.vae.quantize, "f_to_idxBl_or_fhat", watched_quantize)
    before = settings()
    tokenize(small, images_BCHW, precision)
    assert settings() == before
    fast = precision == "tf32"
    assert seen["encode"] == ("high" if fast else "highest", fast, precision == "bf16")
    assert seen["quantize"] == ("highest", False, False)


def test_misuse_of_tokenize_is_told(small: Tokenizer, images_BCHW: Tensor) -> None:
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        tokenize(small, images_BCHW, "fp8")
    small.vae.train()
    with pytest.raises(ValueError, match="in train mode"):
        tokenize(small, images_BCHW)
    prepare(small)
    tokenize(small, images_BCHW)
    assert (
        pick_precision("auto", torch.device("cpu")) == "fp32" and pick_precision("auto", torch.device("cuda")) == "tf32"
    )


def test_two_commands_do_not_make_one_cache(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    """They would write the same files. The sign goes when the cache is finished."""
    assert build(tmp_path / "cache", tokenizer, images).exit_code == 0
    next((tmp_path / "cache").glob("shard-*.npy")).unlink()
    sign = LifeSign(tmp_path / "cache")
    found = json.loads((tmp_path / "cache" / FILE).read_text())
    sign.end()
    facts = {"pid": os.getppid(), "started": "", "token": "theirs"}
    (tmp_path / "cache" / FILE).write_text(json.dumps(found | facts))
    with pytest.raises(
        RunFailed, match=rf"is being made by the process {os.getppid()} on .*; wait until it is finished"
    ):
        build(tmp_path / "cache", tokenizer, images)
    (tmp_path / "cache" / FILE).unlink()
    assert build(tmp_path / "cache", tokenizer, images).exit_code == 0
    assert not (tmp_path / "cache" / FILE).exists()


def test_validation_tokens_are_those_of_centre_crops(tokenizer: Tokenizer, images: ImageList) -> None:
    structure, alias, labels = tokenize_images(tokenizer, images, [1, 8, 10], 32, 1.25, batch=2)
    crops = Crops(images, 32, scale=1.25, random=False)
    expected = tokenize(tokenizer, torch.stack([crops[1].image, crops[8].image]))
    assert torch.equal(structure[:2], expected[0]) and torch.equal(alias[:2], expected[1])
    assert labels.tolist() == [0, 1, 1] and len(structure) == 3


# ------------------------------------------------------------------------------------------------ tokens in the cache


def test_cached_tokens_equal_those_made_on_the_fly(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    built = build(tmp_path / "cache", tokenizer, images)
    assert built.exit_code == 0 and built.images == 12 and built.tokens == 12 * 4 * (5 + 4) and built.broken == 0
    cache, crops = reopen(tmp_path / "cache", tokenizer, images), ViewCrops(images, 32, scale=1.25, plan=PLAN)
    for batch in ([0, 1], [2], [3, 4], [9, 10], [11]):  # as the builder forms them: within shards of 3
        x = torch.cat([crops.all_views(index)[0] for index in batch])
        rows = [cache.read(index, view) for index in batch for view in range(4)]
        structure, alias = tokenize(tokenizer, x)
        assert torch.equal(torch.stack([row.structure for row in rows]), structure)
        assert torch.equal(torch.stack([row.alias for row in rows]), alias)
        assert [row.label for row in rows] == [images.labels[index] for index in batch for _ in range(4)]
    tokens = torch.stack([cache.read(index, view).structure for index in range(12) for view in range(4)])
    assert len(tokens.unique(dim=0)) > 24, "the views must differ for this test to mean anything"


def flat(cache: TokenCache) -> Tensor:
    rows = [cache.read(index, view) for index in range(len(cache)) for view in range(cache.plan.views)]
    return torch.cat([torch.cat([row.structure, row.alias]) for row in rows])


@pytest.mark.parametrize("batch_size", [3, 16])
def test_another_batch_size_changes_next_to_nothing(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, batch_size: int
) -> None:
    build(tmp_path / "a", tokenizer, images)
    build(tmp_path / "b", tokenizer, images, batch_size=batch_size)
    a, b = (flat(reopen(tmp_path / name, tokenizer, images)) for name in "ab")
    assert (a == b).double().mean() >= 0.999


def test_training_sees_the_same_samples_with_and_without_a_cache(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path
) -> None:
    build(tmp_path / "cache", tokenizer, images, workers=2)
    cache, crops = reopen(tmp_path / "cache", tokenizer, images), ViewCrops(images, 32, scale=1.25, plan=PLAN)
    cache.read(0, 0)
    cache = pickle.loads(pickle.dumps(cache))
    order = lambda: StepBatches(12, 4, start=2, stop=8, seed=0)  # noqa: E731
    agree = []
    for cached, fresh in zip(
        DataLoader(cache, batch_sampler=order(), num_workers=2), DataLoader(crops, batch_sampler=order()), strict=True
    ):
        structure, alias = tokenize(tokenizer, fresh.image)
        agree += [cached.structure == structure, cached.alias == alias]
        assert torch.equal(cached.label, fresh.label) and torch.equal(cached.broken, fresh.broken)
        assert cached.structure.dtype == cached.alias.dtype == torch.int64
    assert torch.cat([part.flatten() for part in agree]).double().mean() >= 0.999


def test_a_broken_image_is_replaced_counted_and_flagged(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(images.paths[5])  # the last cat; the dog after it stands in
    path.write_bytes(path.read_bytes()[:200])
    built = build(tmp_path / "cache", tokenizer, images)
    assert built.broken == 1 and capsys.readouterr().out.count(f"broken image replaced: {path}") == 1
    cache, crops = reopen(tmp_path / "cache", tokenizer, images), ViewCrops(images, 32, scale=1.25, plan=PLAN)
    for view in range(4):
        sample, fresh = cache.read(5, view), crops.render(5, view)
        assert (sample.label, sample.broken) == (fresh.label, fresh.broken) == (1, 5)
        assert torch.equal(sample.structure, cache.read(6, view).structure)
    assert cache.read(4, 0).broken == -1 and cache.broken_limit == 3
    assert build(tmp_path / "cache", tokenizer, images).broken == 1, "known again from the shards"


def test_too_many_broken_images_stop(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    for path in images.paths[1:5]:
        Path(path).write_bytes(Path(path).read_bytes()[:200])
    with pytest.raises(RunFailed, match="4 images of 12 cannot be decoded, more than the limit of 3"):
        build(tmp_path / "cache", tokenizer, images)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_stop_with_one_sentence(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, workers: int
) -> None:
    for path in images.paths:
        Path(path).write_bytes(Path(path).read_bytes()[:200])
    before = multiprocessing.active_children()  # another test's
    with pytest.raises(RunFailed) as error:
        build(tmp_path / "cache", tokenizer, images, workers=workers)
    assert str(error.value) == (f"{images.paths[0]} and the images after it cannot be decoded; check the folder.")
    assert not set(multiprocessing.active_children()) - set(before)


# ------------------------------------------------------------------------------------------------ files


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    build(tmp_path / "whole", tokenizer, images)
    real, calls = builder.CacheBuilder._store, iter(range(100))
    signals = {2: signal.SIGTERM, 4: signal.SIGINT}  # the first batch of the second shard each time

    def interrupted(self: Any, *args: Any) -> Any:
        if (call := next(calls)) in signals:
            os.kill(os.getpid(), signals[call])
        return real(self, *args)

    monkeypatch.setattr(builder.CacheBuilder, "_store", interrupted)
    parts = tmp_path / "parts"
    assert build(parts, tokenizer, images).exit_code == 143
    assert list(contents(parts)) == list(contents(tmp_path / "whole"))[:1]
    assert "stopped with 1 of 4 shards finished; rerun the same command" in capsys.readouterr().out
    with pytest.raises(UsageError, match="not finished: it has 1 of 4 shards"):
        reopen(parts, tokenizer, images)
    (parts / ".shard-00001.draft.part").write_bytes(b"torn")
    assert build(parts, tokenizer, images).exit_code == 130
    assert build(parts, tokenizer, images).exit_code == 0
    assert "shards exist and are intact; making the others" in capsys.readouterr().out
    assert contents(parts) == contents(tmp_path / "whole") and len(contents(parts)) == 4
    assert {path.name for path in parts.iterdir()} == {*contents(parts), "index.json"}


def test_batches_that_are_stored_late_make_the_same_bytes(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a batch is stored while the next one is encoded."""
    build(tmp_path / "at once", tokenizer, images)
    monkeypatch.setattr(DeviceKind, "runs_behind", True)
    assert build(tmp_path / "late", tokenizer, images).exit_code == 0
    assert contents(tmp_path / "late") == contents(tmp_path / "at once")


def test_signals_that_reach_the_loader_processes_too_do_no_harm(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, schedulers and Ctrl-C signal the whole process group."""
    real = builder.CacheBuilder._store
    signalled: list[int] = []
    calls = iter(range(100))

    def interrupted(self: Any, *args: Any) -> Any:
        both_started = next(calls) == 1  # the second batch is the second loader's
        for child in multiprocessing.active_children() if both_started else []:
            for number in (signal.SIGTERM, signal.SIGINT):
                assert child.pid
                os.kill(child.pid, number)
                signalled.append(child.pid)
        return real(self, *args)

    monkeypatch.setattr(builder.CacheBuilder, "_store", interrupted)
    assert build(tmp_path / "cache", tokenizer, images, workers=2).exit_code == 0
    assert len(set(signalled)) >= 2 and len(contents(tmp_path / "cache")) == 4


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_recognized_and_made_again(
    harm: Any, tokenizer: Tokenizer, images: ImageList, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    build(folder, tokenizer, images)
    before = contents(folder)
    victim = folder / list(before)[2]
    harm(victim)
    with pytest.raises(UsageError, match=rf"is damaged \({victim.name}: the contents do not match the checksum"):
        reopen(folder, tokenizer, images)
    built = build(folder, tokenizer, images)
    assert built.images == 3 and contents(folder) == before
    assert f"{victim} is damaged" in capsys.readouterr().out
    reopen(folder, tokenizer, images)


def test_a_shard_of_another_shape_is_no_shard_of_this_cache(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path
) -> None:
    build(tmp_path / "cache", tokenizer, images)
    next((tmp_path / "cache").glob("shard-00001-*")).unlink()
    shards.write_shard(tmp_path / "cache", 1, np.zeros((3, 4, 7), dtype=np.uint16))  # its checksum is right
    with pytest.raises(UsageError, match="is damaged"):
        reopen(tmp_path / "cache", tokenizer, images)


def test_a_full_disk_leaves_the_shards_before(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, calls = tmp_path / "cache", np.save, iter(range(100))

    def full(file: Any, rows: np.ndarray) -> None:
        if next(calls) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, rows)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunFailed, match=r"shard 2 .* \(No space left on device\); the shards before it are intact"):
        build(folder, tokenizer, images)
    assert len(contents(folder)) == 2 and not list(folder.glob(".*"))
    assert build(folder, tokenizer, images).images == 6


def test_too_little_space_is_told_before_any_work(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(UsageError, match=r"has 100 bytes free, but the token cache needs 960 bytes more"):
        build(tmp_path / "cache", tokenizer, images)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------ identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": ViewPlan(3, True, 0)}, "crops = 2 (this run wants 3)"),
        ({"plan": ViewPlan(2, False, 0)}, "hflip = True (this run wants False)"),
        ({"plan": ViewPlan(2, True, 8)}, "seed = 0 (this run wants 8)"),
        ({"scale": 1.5}, "crop_scale = 1.25 (this run wants 1.5)"),
        ({"precision": "bf16"}, "precision = fp32 (this run wants bf16)"),
        ({"pyramid": FocusPyramid(image_size=32, states=2, rho_max=4.0)}, "pyramid.rho_max = 3.0 (this run wants 4.0)"),
        ({"alias": None}, "an alias tokenizer (this run has none)"),
        ({"weights": {"vae.pth": "f" * 64}}, "another tokenizer (vae.pth "),
    ],
)
def test_a_cache_of_another_run_is_refused(
    changes: dict[str, Any], words: str, tokenizer: Tokenizer, images: ImageList, tmp_path: Path
) -> None:
    build(tmp_path / "cache", tokenizer, images)
    before = contents(tmp_path / "cache")
    fields: dict[str, Any] = {name: changes.pop(name) for name in ("pyramid", "alias") if name in changes}
    if "weights" in changes:
        fields["config"] = tokenizer.config | {"weights": tokenizer.config["weights"] | changes.pop("weights")}
    other = dataclasses.replace(tokenizer, **fields)
    for attempt in (reopen, build):
        with pytest.raises(UsageError) as error:
            attempt(tmp_path / "cache", other, images, **changes)
        text = str(error.value)
        assert words in text and "choose another folder, or remove this one" in text
    assert contents(tmp_path / "cache") == before


def test_a_cache_of_another_data_set_is_refused(
    tokenizer: Tokenizer, images: ImageList, data: Path, tmp_path: Path
) -> None:
    build(tmp_path / "cache", tokenizer, images)
    moved = image_folder(str(data.rename(tmp_path / "moved")), "train")
    reopen(tmp_path / "cache", tokenizer, moved)  # the same files elsewhere

    def refusal() -> str:
        with pytest.raises(UsageError) as error:
            reopen(tmp_path / "cache", tokenizer, image_folder(str(tmp_path / "moved"), "train"))
        return str(error.value)

    file = Path(moved.paths[3])
    file.write_bytes(file.read_bytes() + b"0")
    assert "another data set (the same number of images, but other files, names or labels)" in refusal()
    write_images(tmp_path / "moved" / "train" / "eel", 2)
    assert "another data set (12 images in 2 classes, not 14 in 3)" in refusal()


def test_data_identity_sees_names_order_and_labels(images: ImageList) -> None:
    swap = lambda values: (values[1], values[0], *values[2:])  # noqa: E731
    changed = [
        dataclasses.replace(images, paths=swap(images.paths)),
        dataclasses.replace(images, labels=(1, *images.labels[1:])),
        dataclasses.replace(images, classes=("cat", "wolf")),
        dataclasses.replace(images, square=True),
    ]
    digests = [other.identity()["digest"] for other in (images, *changed)]
    assert len(set(digests)) == 5


def test_a_folder_in_the_place_of_a_shard_is_a_sentence(
    tokenizer: Tokenizer, images: ImageList, tmp_path: Path
) -> None:
    build(tmp_path / "cache", tokenizer, images)
    shard = next((tmp_path / "cache").glob("shard-00000-*.npy"))
    shard.unlink()
    shard.mkdir()
    for attempt in (reopen, build):
        with pytest.raises(
            UsageError, match=r"shard-00000-\w+\.npy is a folder, not a shard of the token cache; remove it"
        ):
            attempt(tmp_path / "cache", tokenizer, images)
    shard.rmdir()
    build(tmp_path / "cache", tokenizer, images)
    assert shard.is_file()


@pytest.mark.parametrize("name", ["vae.pth", "alias.pth"])
def test_a_folder_in_the_place_of_weights_is_a_sentence(name: str, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(UsageError, match=rf"{re.escape(name)} is a folder, not a file of weights; remove it"):
        load_tokenizer(run)


def test_a_run_that_cannot_write_its_weights_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    (run / "vae.pth").unlink()
    (run / "vae.pth").mkdir()
    assert run_main("tokenizer", *TINY, "--data", str(trained / "data"), "--out", str(run)) == 1
    error = capsys.readouterr().err
    assert "a folder is in the place of the file vae.pth" in error and "Traceback" not in error
    (run / "vae.pth").rmdir()
    assert run_main("tokenizer", *TINY, "--data", str(trained / "data"), "--out", str(run)) == 0
    assert (run / "vae.pth").read_bytes() == (trained / "run" / "vae.pth").read_bytes()


class Encoded(ImageSource):
    """A folder's images, held in memory under names of their own."""

    def __init__(self, images: ImageList) -> None:
        self.classes, self.square, self.labels = images.classes, images.square, images.labels
        self.data = [Path(path).read_bytes() for path in images.paths]

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"archive/{index}"

    def label(self, index: int) -> int:
        return self.labels[index]

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.data[index])

    def identity(self) -> dict[str, Any]:
        return identity_of(self.classes, self.square, enumerate_labels(self), map(len, self.data))


def enumerate_labels(images: ImageSource) -> list[tuple[str, int]]:
    return [(images.name(index), images.label(index)) for index in range(len(images))]


def test_another_kind_of_source_makes_the_same_shards_by_the_command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = Encoded(image_folder(str(trained / "data"), "train"))
    kind = sources.Kind(lambda data: data == "archive", lambda data, split: encoded)
    monkeypatch.setattr(sources, "KINDS", (kind, *sources.KINDS))
    for name, data in (("folder", str(trained / "data")), ("archive", "archive")):
        assert command(trained, tmp_path / name, "--data", data) == 0
    assert contents(tmp_path / "folder") == contents(tmp_path / "archive") != {}
    assert "of archive/train" in capsys.readouterr().out
    assert command(trained, tmp_path / "folder", "--data", "archive") == 2  # the names differ
    assert "another data set (the same number of images, but other files" in capsys.readouterr().err


def test_weights_without_a_recorded_checksum_are_read(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    old = dataclasses.replace(tokenizer, config={k: v for k, v in tokenizer.config.items() if k != "weights"})
    build(tmp_path / "cache", old, images)
    reopen(tmp_path / "cache", tokenizer, images)


def test_a_folder_of_something_else_is_refused(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(UsageError) as error:
            build(tmp_path / "cache", tokenizer, images)
        return str(error.value)

    with pytest.raises(UsageError, match=r"there is no token cache in .*; `bash run.sh tokens` makes one"):
        reopen(tmp_path / "cache", tokenizer, images)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    assert "holds files but no token cache; choose an empty or a new folder" in refusal()
    (tmp_path / "cache" / "index.json").write_text("{")
    assert "is not the index of a token cache" in refusal()
    build(tmp_path / "good", tokenizer, images)
    index = json.loads((tmp_path / "good" / "index.json").read_text())
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index | {"format": 99}))
    assert "has format 99, but this version writes 1" in refusal()


def test_a_codebook_beyond_16_bits_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.vae.quantize, "vocab_size", 65536)
    assert layout_of(tokenizer, 12, 4).bytes == 960
    monkeypatch.setattr(tokenizer.vae.quantize, "vocab_size", 65537)
    with pytest.raises(
        UsageError, match=r"structure codebook .* has 65537 codes; .* at most 65536; train with the cache off"
    ):
        layout_of(tokenizer, 12, 4)


def test_the_largest_index_survives(tokenizer: Tokenizer, images: ImageList, tmp_path: Path) -> None:
    layout = layout_of(tokenizer, 12, 4)
    rows = np.full(layout.shape(0), 65535, dtype=np.uint16)
    rows[..., -1] = 0
    path = shards.write_shard(tmp_path, 0, rows)
    assert TokenCache(images, PLAN, layout, {0: path}).read(3, 1).structure.tolist() == [65535] * 5


def test_shards_stay_few_for_large_data_sets(tokenizer: Tokenizer) -> None:
    layout = layout_of(tokenizer, 14_000_000, 4)
    assert layout.shards <= 512
    assert sum(len(layout.images_of(shard)) for shard in range(layout.shards)) == 14_000_000


# ------------------------------------------------------------------------------------------------ the command


def command(trained: Path, out: Path, *options: str) -> int:
    return run_main("tokens", "--tokenizer", str(trained / "run"), "--out", str(out), "--crops", "2", *options)


def test_the_command_makes_and_verifies_a_cache(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    assert command(trained, out, "--dry-run", "--hflip") == 0
    planned = capsys.readouterr().out
    assert "4 views of each (2 random crops, each mirrored as well)" in planned and not out.exists()
    assert "5 structure + 4 alias per view, 432 in all, 960 bytes in 1 shard\n" in planned
    assert command(trained, out, "--hflip") == 0
    (shard,) = out.glob("shard-*.npy")
    assert np.load(shard).nbytes == 960
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{out}: 12 images, 48 views, 432 tokens, 960 bytes; made in 0:0") and "tokens/s)" in last
    assert command(trained, out, "--hflip") == 0
    assert "complete and verified, nothing to do" in capsys.readouterr().out
    assert command(trained, out, "--hflip", "--seed", "3") == 2
    error = capsys.readouterr().err
    assert error.startswith("refocus: --out: the token cache ") and "Traceback" not in error
    assert "seed = 0 (this run wants 3); choose another folder" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--tokenizer", "nowhere"],
            "nowhere does not exist; a tokenizer is the run folder of `bash run.sh tokenizer`, which comes first",
        ),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--crops", "0"], "0 is not greater than 0"),
        (["--precision", "tf32"], "--precision: tf32 is CUDA's, and this runs on cpu"),
        (["--precision", "fp8"], "there is no 'fp8'"),
        (["--small-images", "refuse", "--data", "SMALL"], "smaller than the 32 pixel crop"),
    ],
)  # fmt: skip
def test_bad_options_before_any_work(
    options: list[str], words: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "small" / split / "ant", 1, size=(20, 20))
    options = [str(tmp_path / "small") if word == "SMALL" else word for word in options]
    assert command(trained, tmp_path / "cache", "--device", "cpu", *options) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "cache").exists()


TWO_PROCESSES = """
import sys
from refocus_ext.tokens import shards
shards.SHARD_IMAGES = 3
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""


@pytest.fixture
def small_shards(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small_shards.py"
    path.write_text(TWO_PROCESSES)
    yield path


def test_two_processes_make_the_same_bytes(trained: Path, tmp_path: Path, small_shards: Path) -> None:
    """Of four shards one is there and intact; they share the others, one of which is damaged."""
    load = load_tokenizer(trained / "run")
    images = image_folder(str(trained / "data"), "train")
    build(tmp_path / "one", load, images)
    whole = contents(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name in list(whole)[2:]:
        (tmp_path / "two" / name).unlink()
    flip_a_bit(tmp_path / "two" / next(iter(whole)))
    words = ["tokens", "--tokenizer", str(trained / "run"), "--out", str(tmp_path / "two"), "--crops", "2", "--hflip"]
    words += ["--crop-scale", "1.25", "--batch-size", "8", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(small_shards)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*launch, *words], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "two") == whole
    assert result.stdout.count("upstream: ") == result.stdout.count("is damaged") == 1, "only rank 0 talks"
    assert "1 of 4 shards exist and are intact; making the others" in result.stdout
    assert "324 of them made in" in result.stdout
