"""The interface that all images are read by: files and the demo keep its promises, and so does a source of another kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch.utils.data import DataLoader

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.checks import broken_limit, check_images, size_of
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import SampleKey, StepBatches, spread
from refocus_ext.images.sources import kinds as sources
from refocus_ext.images.sources.folder import ImageList, image_folder
from refocus_ext.images.sources.interface import ImageSource, identity_of
from refocus_ext.images.sources.kinds import Kind, demo_photographs, find_images, find_split


class InMemory(ImageSource):
    """Encoded images that are held in memory: a source without paths."""

    def __init__(self, files: list[tuple[str, int, bytes]], classes: tuple[str, ...]) -> None:
        self.files, self.classes, self.square = files, classes, False

    @classmethod
    def of(cls, images: ImageList, root: Path) -> InMemory:
        """The same images as those of a folder."""
        names = [str(Path(path).relative_to(root)) for path in images.paths]
        files = [(name, images.label(i), Path(images.paths[i]).read_bytes()) for i, name in enumerate(names)]
        return cls(files, images.classes)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return f"memory/{self.files[index][0]}"

    def label(self, index: int) -> int:
        return self.files[index][1]

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.files[index][2])

    def identity(self) -> dict[str, Any]:
        names = [(f"/{name}", label) for name, label, _ in self.files]
        return identity_of(self.classes, self.square, names, [len(data) for *_, data in self.files])


@pytest.fixture
def images(image_tree: Path) -> ImageList:
    return image_folder(str(image_tree), "train")


@pytest.fixture
def memory(images: ImageList, image_tree: Path) -> InMemory:
    return InMemory.of(images, image_tree / "train")


@pytest.mark.parametrize("kind", ["folder", "demo", "memory"])
def test_every_source_keeps_the_promises(kind: str, images: ImageList, memory: InMemory) -> None:
    source: ImageSource = {"folder": images, "demo": demo_photographs(), "memory": memory}[kind]
    assert {source.label(i) for i in range(len(source))} == set(range(len(source.classes)))
    assert len({source.name(i) for i in range(len(source))}) == len(source)
    with source.open(0) as file:
        assert len(file.read()) > 100
    twin = pickle.loads(pickle.dumps(source))
    assert twin.identity() == source.identity() == json.loads(json.dumps(source.identity()))
    assert source.identity()["images"] == len(source) and source.identity()["classes"] == len(source.classes)


def test_a_source_of_paths_travels_without_pixels(images: ImageList) -> None:
    assert len(pickle.dumps(images)) < 200 + sum(len(path) + 10 for path in images.paths)


def test_the_identity_is_the_one_of_older_caches(images: ImageList) -> None:
    """The digest as it was first written, in one piece: caches of that time must stay valid."""
    folder = len(os.path.commonpath([os.path.dirname(path) for path in images.paths]))
    digest = hashlib.sha256(json.dumps([images.classes, images.square]).encode())
    for path, label in zip(images.paths, images.labels, strict=True):
        digest.update(f"{path[folder:]}\n{label}\n".encode())
    for index in spread(range(len(images)), 5000):
        digest.update(f"{os.path.getsize(images.paths[index])}\n".encode())
    assert images.identity() == {"images": 12, "classes": 2, "digest": digest.hexdigest()}


def test_another_kind_gives_the_same_crops_in_any_number_of_processes(images: ImageList, memory: InMemory) -> None:
    assert memory.identity() == images.identity()
    of_files, of_memory = (Crops(source, 64, scale=1.5, hflip=True, seed=3) for source in (images, memory))
    for epoch in range(2):
        for index in range(len(images)):
            assert torch.equal(of_files[SampleKey(epoch, index)].image, of_memory[SampleKey(epoch, index)].image)
    loaded = []
    for source, workers in ((of_files, 0), (of_memory, 2)):
        batches = StepBatches(len(source), 4, start=0, stop=3, seed=0)
        loaded.append(list(DataLoader(source, batch_sampler=batches, num_workers=workers)))
    for ours, theirs in zip(*loaded, strict=True):
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.label, theirs.label)


def test_messages_use_the_names_of_the_source(memory: InMemory) -> None:
    name, label, data = memory.files[2]
    memory.files[2] = (name, label, data[: len(data) // 2])  # the header is whole, the pixels are not
    sample = Crops(memory, 64)[SampleKey(0, 2)]
    assert sample.broken == 2
    memory.files = [(name, label, b"no image") for name, label, _ in memory.files]
    with pytest.raises(RunFailed, match=r"memory/cat/000\.jpg and the images after it cannot be decoded"):
        Crops(memory, 64)[SampleKey(0, 0)]
    with pytest.raises(UsageError, match=r"memory/cat/000\.jpg is not an image that can be opened"):
        check_images(memory, 64, "auto")


def test_headers_are_read_through_the_source(memory: InMemory) -> None:
    width, height = size_of(memory, 0)
    assert check_images(memory, min(width, height), "refuse") is None
    with pytest.raises(UsageError, match=rf"memory/.* is {width}x{height} pixels, smaller than the 999 pixel crop"):
        check_images(memory, 999, "auto")
    assert "12 of 12 images checked are smaller" in str(check_images(memory, 999, "upsample"))


def test_a_limit_on_broken_images_grows_with_the_set(memory: InMemory) -> None:
    assert broken_limit(memory) == 3
    memory.files = memory.files * 100
    assert broken_limit(memory) == 12


# ------------------------------------------------------------------------------------------------ which kind it is


def test_the_kind_is_chosen_by_the_word(image_tree: Path) -> None:
    assert find_split("", "train") == find_split("", "val") == demo_photographs()
    assert find_split(str(image_tree), "val") == image_folder(str(image_tree), "val")


def test_a_kind_is_one_line(image_tree: Path, memory: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind(lambda data: data == "memory", lambda data, split: memory)
    monkeypatch.setattr(sources, "KINDS", (kind, *sources.KINDS))
    assert find_images("memory") == (memory, memory)
    assert find_images(str(image_tree))[0] == image_folder(str(image_tree), "train")


def test_validation_cannot_have_a_class_of_its_own(image_tree: Path) -> None:
    (image_tree / "val" / "wolf").mkdir()
    source = next((image_tree / "val").rglob("*.jpg"))
    (image_tree / "val" / "wolf" / "a.jpg").write_bytes(source.read_bytes())
    with pytest.raises(UsageError, match=r"val/ has the class wolf, which train/ does not have; the two must agree"):
        find_images(str(image_tree))
