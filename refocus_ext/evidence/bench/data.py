"""How fast images are loaded, on one core: our sources beside torchvision's ImageFolder with VAR's own transforms."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from refocus_ext.evidence.bench.clock import time_interleaved
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.archives import TRAIN_TAR
from refocus_ext.images.sources.kinds import demo_photographs, find_split

SIZE = (500, 375)  # pixels, ImageNet's most frequent size
QUALITY = 90  # of the JPEGs
VAR_RATE = 74  # images/s per A100 of VAR's own d16 training: 200 epochs in 2.5 days on 16 of them
NAMES = {
    "torchvision": "torchvision.ImageFolder, VAR's transforms",
    "folder": "ours, the same folder",
    "tar": "ours, the same images in ImageNet's tar file",
}


def measure(image_size: int, repeats: int) -> dict[str, Any]:
    """Images per second of each loader on one core; all read the same JPEGs, in memory after the first round."""
    with loaders(image_size) as (count, parts):
        seconds = time_interleaved(parts, repeats, torch.device("cpu"))
    rates = {name: count / value for name, value in seconds.items()}
    return {
        "images": count,
        "per_second": rates,
        "over_torchvision": {k: v / rates["torchvision"] for k, v in rates.items()},
    }


@contextlib.contextmanager
def loaders(image_size: int) -> Iterator[tuple[int, dict[str, Callable[[], Any]]]]:
    """Gives the number of JPEGs, and for each loader of `NAMES` what reads them all once."""
    with tempfile.TemporaryDirectory() as name:
        folder, archive = Path(name) / "folder", Path(name) / "tar"
        count = _write(folder, archive)
        yield (
            count,
            {
                "torchvision": _torchvision(folder / "train", image_size),
                "folder": _ours(folder, image_size),
                "tar": _ours(archive, image_size, Path(name)),
            },
        )


def _write(folder: Path, archive: Path) -> int:
    """The demo photographs at ImageNet's size, four crops of each, as a folder and as ImageNet's tar of class tars."""
    source, count = demo_photographs(), 0
    archive.mkdir(parents=True)
    with tarfile.open(archive / TRAIN_TAR, "w") as outer:
        for index, wnid in enumerate(source.classes):
            target = folder / "train" / wnid
            target.mkdir(parents=True)
            with source.open(index) as file, Image.open(file) as image:
                picture = image.convert("RGB")
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_tar:
                for corner in range(4):
                    box = (corner * 8, corner * 8, picture.width, picture.height)
                    path = target / f"{corner}.JPEG"
                    picture.resize(SIZE, Image.Resampling.LANCZOS, box=box).save(path, quality=QUALITY)
                    class_tar.add(path, path.name)
                    count += 1
            member = tarfile.TarInfo(f"{wnid}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    return count


def _torchvision(folder: Path, size: int) -> Callable[[], Any]:
    """VAR's training transforms: shorter side to 1.125 crops by Lanczos, a random crop, [-1,1]."""
    from torchvision import datasets, transforms

    steps = [
        transforms.Resize(round(1.125 * size), interpolation=transforms.InterpolationMode.LANCZOS),
        transforms.RandomCrop((size, size)),
        transforms.ToTensor(),
        transforms.Lambda(lambda x: x.add(x).add_(-1)),
    ]
    data = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    return lambda: [data[i] for i in range(len(data))]


def _ours(data: Path, size: int, cache: Path | None = None) -> Callable[[], Any]:
    """
    Args:
        cache: where the index of a tar file goes, in place of the user's cache folder.
    """
    before = os.environ.get("XDG_CACHE_HOME")
    if cache:
        os.environ["XDG_CACHE_HOME"] = str(cache)
    crops = Crops(find_split(str(data), "train"), size)
    if cache:
        os.environ.pop("XDG_CACHE_HOME")
        os.environ.update({"XDG_CACHE_HOME": before} if before else {})
    return lambda: [crops[SampleKey(0, i)] for i in range(len(crops))]


def table(report: dict[str, Any]) -> list[str]:
    """The report in lines."""
    lines = [f"{report['images']} JPEGs of {SIZE[0]}x{SIZE[1]} px on one core    images/s   against torchvision"]
    for name, rate in report["per_second"].items():
        lines.append(f"{NAMES[name]:<46}{rate:>9.0f}{report['over_torchvision'][name]:>18.2f}x")
    cores = VAR_RATE / report["per_second"]["folder"]
    lines.append(
        f"VAR's own d16 training took {VAR_RATE} images/s per A100: {cores:.1f} such cores; from a token cache it takes none"
    )
    return lines
