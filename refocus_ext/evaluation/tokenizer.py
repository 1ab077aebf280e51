"""`bash run.sh eval --tokenizer RUN`: the reconstruction quality of a finished tokenizer on validation images.

All numbers are means over images, streamed over batches in eval mode: no noise, nothing random. Images are in [-1,1];
focus states and token scales are counted from 1 in what is printed or written, as in the paper.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from patches import load_upstream
from refocus_ext.counting import counted
from refocus_ext.engine.devices import pick_device
from refocus_ext.errors import UsageError, named, offering
from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.inception import to_uint8
from refocus_ext.evaluation.instruments import AliasCoder, Instruments, open_instruments
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.evaluation.tokenizer_report import ScaleHealth, StateQuality, TokenizerReport, table, write_json
from refocus_ext.images.checks import check_images
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import spread
from refocus_ext.images.sources.archives import holds_imagenet
from refocus_ext.images.sources.folder import NoValidation
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_split, split_name
from refocus_ext.images.sources.parts import numbered_as
from refocus_ext.tokenizer.alias.explained_variance import ExplainedVariance
from refocus_ext.tokenizer.prefixes import decode_prefix
from refocus_ext.tokens.bare_tokenizer import ASSUMED_BY, Assumed, WrongAssumption, open_tokenizer
from refocus_ext.tokens.trained_tokenizer import Tokenizer, training_left
from refocus_ext.vector_quantization import codebook_use

PAPERS_IMAGES = 50_000  # number of images (ImageNet val) on which papers report rFID


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    if not options.tokenizer:
        raise UsageError("eval needs --tokenizer RUN, the run folder of `bash run.sh tokenizer`.")
    print(load_upstream().describe())
    device = pick_device(options.device)
    with named("--tokenizer"), offering(ASSUMED_BY, WrongAssumption):
        assumed = Assumed(options.patch_nums, options.blur or None, options.focus_states, options.rho_max)
        tokenizer = open_tokenizer(Path(options.tokenizer), device, assumed)
    for note in tokenizer.notes:
        print(f"note: {tokenizer.path}: {note}")
    if left := training_left(tokenizer):
        print(f"note: {left}")
    with named("--data"):
        images, source = val_images(tokenizer, options.data)
    tools = open_instruments(
        tokenizer, device, lpips_weights=options.lpips_weights, inception_weights=options.inception_weights
    )
    chosen = spread(range(len(images)), options.images or len(images))
    size = tokenizer.pyramid.image_size
    crops = centre_crops(tokenizer, images, options.crop_scale)
    view = f"centre crops of {size} px of images resized to {crops.shorter} px"
    print(f"measuring {tokenizer.path} on {counted(len(chosen), 'image')} of {source}, {view}, on {device}")
    batches = loader(tokenizer, crops, chosen, options)
    report = replace(evaluate(tokenizer, batches, tools, device, images.name), view=view)
    print("\n" + "\n".join(table(report)))
    if options.json:
        with named("--json"):
            write_json(Path(options.json), tokenizer, source, report)
    return 0


def val_images(tokenizer: Tokenizer, data: str) -> tuple[ImageSource, str]:
    """The validation images and their name: of `data`, else of the run's own data, else the demo photographs.

    Raises:
        UsageError: they are missing, or smaller than the crop and the run refused that.
    """
    data = tokenizer.data(data)
    found, split = measured_split(tokenizer, data)
    if tokenizer.bare and split == "train":
        print(
            f"note: {data} has no images of its own for validation, and nothing is known that a bare file was trained on: all its "
            f"{counted(len(found), 'image')} are measured"
        )
    images = numbered_as_run(tokenizer.path, found)
    note = check_images(images, tokenizer.pyramid.image_size, tokenizer.trained_with.small_images)
    for line in images.notes() + ((note,) if note else ()):
        print(f"note: {line}")
    return images, split_name(data, split, found) + ("" if data else " (which the demo also trains on)")


def measured_split(tokenizer: Tokenizer, data: str) -> tuple[ImageSource, str]:
    """The images to measure, and their split: "val"; or "train" for a bare file and data without val.

    Raises:
        UsageError: they are missing.
    """
    try:
        return find_split(data, "val", tokenizer.trained_with.val_share), "val"
    except NoValidation:
        if not tokenizer.bare or holds_imagenet(data):  # ImageNet's validation images are those to measure
            raise
        return find_split(data, "train"), "train"


def numbered_as_run(run: Path, images: ImageSource) -> ImageSource:
    """The images with the labels of the run's classes, unless they have others: no measure of a tokenizer uses labels."""
    file = run / "classes.json"
    classes = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return numbered_as(images, classes) if set(images.classes) <= set(classes) else images


def centre_crops(tokenizer: Tokenizer, images: ImageSource, scale: float | None) -> Crops:
    """Centre crops of images whose shorter side is resized to `scale` crops; None as in the run's validation."""
    scale = tokenizer.trained_with.crop_scale if scale is None else scale
    return Crops(images, tokenizer.pyramid.image_size, scale=scale, random=False)


def loader(tokenizer: Tokenizer, crops: Crops, chosen: Sequence[int], options: EvalOptions) -> DataLoader[Any]:
    """Batches of the chosen images."""
    trained = tokenizer.trained_with
    workers = trained.workers if options.workers is None else options.workers
    return DataLoader(Subset(crops, chosen), batch_size=options.batch_size or 16, num_workers=workers)


def evaluate(
    tokenizer: Tokenizer, batches: Any, tools: Instruments, device: torch.device, name: Callable[[int], str] = str
) -> TokenizerReport:
    """Measures the tokenizer on batches of `Sample`.

    Args:
        name: of an image by its index.
    """
    evaluation, broken = Evaluation(tokenizer, tools), list[int]()
    for batch in tqdm(batches, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        evaluation.update(batch.image.to(device, non_blocking=True))
        broken += [index for index in batch.broken.tolist() if index >= 0]
    return evaluation.report([name(index) for index in broken])


class Evaluation:
    """Running sums over batches: `update(x)` for each, then `report()`."""

    def __init__(self, tokenizer: Tokenizer, tools: Instruments) -> None:
        self.vae, self.pyramid, self.tools = tokenizer.vae, tokenizer.pyramid, tools
        self.sides: tuple[int, ...] = self.vae.quantize.v_patch_nums
        last = self.pyramid.last_scale_of_state(self.sides)
        self.prefixes = [(k, scale) for k, scale in enumerate(last) if scale is not None]
        self.images = 0
        self.sums = torch.zeros(len(self.prefixes), 2, len(tools.measures), dtype=torch.float64)  # against F_k and x
        self.hits_SV = torch.zeros(len(self.sides), self.vae.quantize.vocab_size, dtype=torch.long)
        self.real, self.fake = FeatureStatistics(), FeatureStatistics()
        self.explained = ExplainedVariance(self.pyramid.states - 1)

    @torch.no_grad()
    def update(self, x_B3HW: Tensor) -> None:
        """Adds a batch of images in [-1,1]."""
        f_hat_S, idx_S = self._encode(x_B3HW)
        for hits_V, idx in zip(self.hits_SV, idx_S, strict=True):
            hits_V += idx.flatten().bincount(minlength=len(hits_V)).cpu()
        image = x_B3HW
        for row, (k, scale) in zip(self.sums, self.prefixes, strict=True):
            image = decode_prefix(self.vae, f_hat_S[scale], k)
            for total, target in zip(row, (self.pyramid.focused(x_B3HW, k), x_B3HW), strict=True):
                total += torch.stack(
                    [m(image, target).sum(dtype=torch.float64) for m in self.tools.measures.values()]
                ).cpu()
        if self.tools.inception is not None:  # `image` is now decoded from all tokens
            self.real.update(self.tools.inception(to_uint8(x_B3HW)))
            self.fake.update(self.tools.inception(to_uint8(image)))
        if self.tools.alias is not None:
            self._update_alias(self.tools.alias, x_B3HW)
        self.images += len(x_B3HW)

    def _encode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Prefixes f_hat and tokens of every scale, encoding each view once."""
        targets = self.vae.encode_targets(x)
        q = self.vae.quantize.quantize([targets] * self.pyramid.states if isinstance(targets, Tensor) else targets)
        return q.f_hat_S, q.idx_S

    def _update_alias(self, alias: AliasCoder, x: Tensor) -> None:
        alias_K = [self.pyramid.alias(x, k) for k in range(self.pyramid.states - 1)]
        self.explained.update(alias_K, alias.reconstruct(alias.tokens(alias_K)))

    def report(self, replaced: Sequence[str] = ()) -> TokenizerReport:
        """The report on all images so far.

        Args:
            replaced: names of the images that could not be decoded.

        Raises:
            ValueError: there were none.
        """
        if not self.images:
            raise ValueError("no images have been measured")
        notes: list[str] = []
        missing = dict(self.tools.not_measured)
        rfid = self._rfid(notes, missing)
        if replaced:
            shown = ", ".join(replaced[:3]) + (f" and {len(replaced) - 3} more" if len(replaced) > 3 else "")
            notes.append(f"cannot be decoded: {shown}; the next images were measured twice instead.")
        return TokenizerReport(
            images=self.images,
            replaced=len(replaced),
            states=self._states(),
            scales=self._scales(),
            codes=self.hits_SV.shape[1],
            rfid=rfid,
            alias_explained=None if self.tools.alias is None else self.explained.compute(),
            not_measured=missing,
            notes=notes,
        )

    def _rfid(self, notes: list[str], missing: dict[str, str]) -> float | None:
        if self.tools.inception is None:
            return None
        if self.images < 2:
            missing["rfid"] = "a covariance needs at least 2 images."
            return None
        if self.images < PAPERS_IMAGES:
            notes.append(
                f"rFID is biased upwards for few images: {self.images} here, {PAPERS_IMAGES} (ImageNet val) in papers."
            )
        if not self.tools.inception.standard:
            notes.append(
                "the Inception weights are not the published ones: this rFID is not comparable with published ones."
            )
        return frechet_distance(self.real, self.fake)

    def _states(self) -> list[StateQuality]:
        names = list(self.tools.measures)
        means = (self.sums / self.images).tolist()
        return [
            StateQuality(
                state=k + 1,
                radius=self.pyramid.radii[k] if self.pyramid.blurs else 0.0,
                tokens=sum(side * side for side in self.sides[: scale + 1]),
                focus=dict(zip(names, focus, strict=True)),
                sharp=dict(zip(names, sharp, strict=True)),
            )
            for (k, scale), (focus, sharp) in zip(self.prefixes, means, strict=True)
        ]

    def _scales(self) -> list[ScaleHealth]:
        states = self.pyramid.states_of(self.sides)
        return [
            ScaleHealth(s, side, k + 1, int(hits_V.sum()), *codebook_use(hits_V))
            for s, (side, k, hits_V) in enumerate(zip(self.sides, states, self.hits_SV, strict=True), start=1)
        ]
