"""`bash run.sh eval --tokenizer RUN`: what a finished tokenizer keeps of images it has not been trained on.

All numbers are means over images, streamed over batches in eval mode: no noise, nothing random. Images are in [-1,1];
focus states and token scales are counted from 1 in what is printed or written, as in the paper.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from patches import load_upstream
from refocus_ext.alias_tokenizer import ExplainedVariance
from refocus_ext.checkpoint import Checkpoints
from refocus_ext.config import EvalOptions
from refocus_ext.data import Crops, ImageList, check_images, demo_photographs, image_folder, spread
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.files import save_json
from refocus_ext.inception import FeatureStatistics, InceptionFeatures, frechet_distance, load_inception, to_uint8
from refocus_ext.loop import pick_device
from refocus_ext.perceptual import load_lpips
from refocus_ext.structure import psnr
from refocus_ext.tokenizer import Tokenizer, load_tokenizer

Measure = Callable[[Tensor, Tensor], Tensor]  # image, target (B,3,H,W) -> (B,)
PAPERS_IMAGES = 50_000  # on which papers report rFID: ImageNet val


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    if not options.tokenizer:
        raise UsageError("eval needs --tokenizer RUN, the run folder of `bash run.sh tokenizer`.")
    print(load_upstream().describe())
    device = pick_device(options.device)
    tokenizer = load_tokenizer(Path(options.tokenizer), device)
    if unfinished := training_left(tokenizer):
        print(f"note: {unfinished}")
    images, source = val_images(tokenizer, options.data)
    tools = open_instruments(options, tokenizer, device)
    chosen = spread(range(len(images)), options.images or len(images))
    size = tokenizer.pyramid.image_size
    print(f"measuring {tokenizer.path} on {len(chosen)} images of {source}, centre crops of {size} px, on {device}")
    report = evaluate(tokenizer, loader(tokenizer, images, chosen, options), tools, device)
    print("\n" + "\n".join(table(report)))
    if options.json:
        write_json(Path(options.json), tokenizer, source, report)
    return 0


def training_left(tokenizer: Tokenizer) -> str:
    """A sentence where the newest checkpoint says that the run was interrupted, and the weights are its; else ''."""
    newest = Checkpoints(tokenizer.path / "checkpoints").newest_step()
    steps = tokenizer.options.get("steps")
    if newest is None or steps is None or newest >= steps:
        return ""
    return (
        f"training of {tokenizer.path} is not finished: these are its weights after {newest} of {steps} steps; the command "
        "that began it, typed again, goes on with it."
    )


# ------------------------------------------------------------------------------------------------ what is measured, on what


class AliasCoder(Protocol):
    """What is asked of an alias tokenizer (`AliasTokenizer` has it)."""

    def tokens(self, alias_K: Sequence[Tensor]) -> list[Tensor]: ...
    def reconstruct(self, idx_K: Sequence[Tensor]) -> list[Tensor]: ...


@dataclass
class Instruments:
    """The measures that can be taken here, and why the others cannot."""

    measures: dict[str, Measure]
    inception: InceptionFeatures | None = None
    alias: AliasCoder | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)


def open_instruments(options: EvalOptions, tokenizer: Tokenizer, device: torch.device) -> Instruments:
    """PSNR and SSIM always; LPIPS, rFID and the alias tokenizer where their files are.

    Raises:
        UsageError: a file that was named is missing or not what it should be.
    """
    tools = Instruments({"psnr": psnr, "ssim": ssim})
    lpips = _if_there(tools, "lpips", options.lpips_weights, lambda: load_lpips(options.lpips_weights, device))
    if lpips is not None:
        tools.measures["lpips"] = lpips
    path = options.inception_weights
    tools.inception = _if_there(tools, "rfid", path, lambda: load_inception(path, device))
    tools.alias = tokenizer.alias
    if tools.alias is None:
        tools.not_measured["alias"] = f"{tokenizer.path} trained no alias tokenizer."
    return tools


def _if_there(tools: Instruments, name: str, given: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; a file that nobody named may be missing, and is then noted as the reason."""
    try:
        return load()
    except UsageError as error:
        if given:
            raise
        tools.not_measured[name] = str(error)
        return None


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al., 2004; Gaussian window of sigma 1.5), for values in [-1,1], (B,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    # in [0,1]: SSIM's luminance term compares means and has no meaning for means around 0
    unit, reference = ((values.clamp(-1, 1) + 1) / 2 for values in (image, target))
    value = structural_similarity_index_measure(unit, reference, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def val_images(tokenizer: Tokenizer, data: str) -> tuple[ImageList, str]:
    """The validation images and their name: of `data`, else of the run's own data, else the demo photographs.

    Raises:
        UsageError: they are not there, or smaller than the crop where the run refused such.
    """
    data = data or tokenizer.options.get("data", "")
    images = image_folder(data, "val") if data else demo_photographs()
    note = check_images(images, tokenizer.pyramid.image_size, tokenizer.options.get("small_images", "auto"))
    if note:
        print(f"note: {note}")
    return images, f"{data}/val" if data else "the demo photographs (which the demo also trains on)"


def loader(tokenizer: Tokenizer, images: ImageList, chosen: Sequence[int], options: EvalOptions) -> DataLoader[Any]:
    """Centre crops of the chosen images, resized as the run's validation does."""
    scale = tokenizer.options.get("crop_scale", 1.125)
    crops = Crops(images, tokenizer.pyramid.image_size, scale=scale, random=False)
    workers = tokenizer.options.get("workers", 0) if options.workers is None else options.workers
    return DataLoader(Subset(crops, chosen), batch_size=options.batch_size or 16, num_workers=workers)


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class StateQuality:
    """The image of a focus state's prefix against its view F_k and against x; each maps a measure to its mean."""

    state: int
    radius: float  # pixels
    tokens: int  # of the prefix
    focus: dict[str, float]
    sharp: dict[str, float]


@dataclass(frozen=True)
class ScaleHealth:
    """How a token scale uses the codebook: percent of the codes seen at all, and exp of the entropy of the codes."""

    scale: int
    side: int  # latent cells
    state: int
    tokens: int  # seen in all, an upper bound of both
    usage: float
    perplexity: float


@dataclass(frozen=True)
class TokenizerReport:
    """All numbers of an evaluation. `states` omits focus states that no token scale serves; the last one is the whole
    reconstruction. `not_measured` gives the reason for each number that is absent."""

    images: int
    replaced: int  # images that could not be decoded, and the ones after them were measured instead
    states: list[StateQuality]
    scales: list[ScaleHealth]
    codes: int
    rfid: float | None
    alias_explained: list[float] | None
    not_measured: dict[str, str]
    notes: list[str]

    @property
    def reconstruction(self) -> dict[str, float]:
        """The whole reconstruction against x."""
        return self.states[-1].sharp | ({} if self.rfid is None else {"rfid": self.rfid})


def evaluate(tokenizer: Tokenizer, batches: Any, tools: Instruments, device: torch.device) -> TokenizerReport:
    """Measures the tokenizer on batches of `Sample`."""
    evaluation, replaced = Evaluation(tokenizer, tools), 0
    for batch in tqdm(batches, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        evaluation.update(batch.image.to(device, non_blocking=True))
        replaced += int((batch.broken >= 0).sum())
    return evaluation.report(replaced)


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
        """Takes in a batch of images in [-1,1]."""
        f_hat_S, idx_S = self._encode(x_B3HW)
        for hits_V, idx in zip(self.hits_SV, idx_S, strict=True):
            hits_V += idx.flatten().bincount(minlength=len(hits_V)).cpu()
        image = x_B3HW
        for row, (k, scale) in zip(self.sums, self.prefixes, strict=True):
            image = self.vae.decode(f_hat_S[scale]).clamp(-1, 1)
            for total, target in zip(row, (self.pyramid.focused(x_B3HW, k), x_B3HW), strict=True):
                total += torch.stack(
                    [m(image, target).sum(dtype=torch.float64) for m in self.tools.measures.values()]
                ).cpu()
        if self.tools.inception is not None:  # `image` is now that of all tokens
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

    def report(self, replaced: int = 0) -> TokenizerReport:
        """The numbers of all images so far.

        Raises:
            ValueError: there were none.
        """
        if not self.images:
            raise ValueError("no images have been measured")
        notes: list[str] = []
        missing = dict(self.tools.not_measured)
        rfid = self._rfid(notes, missing)
        if replaced:
            notes.append(f"{replaced} images cannot be decoded; the ones after them were measured twice instead.")
        return TokenizerReport(
            images=self.images,
            replaced=replaced,
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
                f"rFID is biased upwards on few images: {self.images} here, {PAPERS_IMAGES} (ImageNet val) in papers."
            )
        if not self.tools.inception.standard:
            notes.append("the Inception weights are not the published ones: this rFID compares with nobody's.")
        return frechet_distance(self.real, self.fake)

    def _states(self) -> list[StateQuality]:
        names = list(self.tools.measures)
        means = (self.sums / self.images).tolist()
        return [
            StateQuality(
                state=k + 1,
                radius=self.pyramid.radii[k] if self.pyramid.refocuses else 0.0,
                tokens=sum(side * side for side in self.sides[: scale + 1]),
                focus=dict(zip(names, focus, strict=True)),
                sharp=dict(zip(names, sharp, strict=True)),
            )
            for (k, scale), (focus, sharp) in zip(self.prefixes, means, strict=True)
        ]

    def _scales(self) -> list[ScaleHealth]:
        states = self.pyramid.states_of(self.sides)
        return [
            ScaleHealth(s, side, k + 1, int(hits_V.sum()), *usage_and_perplexity(hits_V))
            for s, (side, k, hits_V) in enumerate(zip(self.sides, states, self.hits_SV, strict=True), start=1)
        ]


def usage_and_perplexity(hits_V: Tensor) -> tuple[float, float]:
    """(percent of codes seen, exp of the entropy in nats) of how often each code was seen."""
    share = hits_V.double() / hits_V.sum()
    return 100 * (hits_V > 0).double().mean().item(), math.exp(torch.special.entr(share).sum().item())


# ------------------------------------------------------------------------------------------------ results

LABELS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "rfid": "rFID", "alias": "alias explained variance"}
FORMATS = {"psnr": ".2f", "ssim": ".4f", "lpips": ".4f", "rfid": ".2f"}


def table(report: TokenizerReport) -> list[str]:
    """The report as lines: prefixes per state, codes per scale, the whole reconstruction, and what is missing."""
    return [
        *_state_table(report.states),
        "",
        *_scale_table(report),
        "",
        *_alias_lines(report.alias_explained),
        f"all tokens against x, {report.images} images: {_numbers(report.reconstruction)}",
        *(f"note: {note}" for note in report.notes),
        *(f"not measured: {LABELS[name]}, because {reason}" for name, reason in report.not_measured.items()),
    ]


def _state_table(states: Sequence[StateQuality]) -> list[str]:
    names = list(states[0].focus)
    columns = "".join(f"{LABELS[name]:>9}" for name in names)
    wide = len(columns)
    lines = [
        f"{'':<28}{'prefix against F_k':>{wide}}   {'prefix against x':>{wide}}",
        f"{'focus state':<12}{'blur':>8}{'tokens':>8}{columns}   {columns}",
    ]
    for row in states:
        blur = f"{row.radius:g} px" if row.radius else "none"
        cells = ["".join(f"{values[name]:>9{FORMATS[name]}}" for name in names) for values in (row.focus, row.sharp)]
        lines.append(f"{row.state:<12}{blur:>8}{row.tokens:>8}{cells[0]}   {cells[1]}")
    return lines


def _scale_table(report: TokenizerReport) -> list[str]:
    lines = [f"{'token scale':<12}{'cells':>8}{'state':>8}{'tokens':>12}{'codes used':>14}{'perplexity':>13}"]
    for row in report.scales:
        used = f"{round(row.usage * report.codes / 100)} of {report.codes}"
        cells = f"{row.side}x{row.side}"
        lines.append(f"{row.scale:<12}{cells:>8}{row.state:>8}{row.tokens:>12}{used:>14}{row.perplexity:>13.1f}")
    return lines


def _alias_lines(explained: Sequence[float] | None) -> list[str]:
    if explained is None:
        return []
    shares = ", ".join(f"state {k} {100 * share:.1f}%" for k, share in enumerate(explained, start=1))
    return [f"variance of the alias residuals explained by their tokens: {shares}"]


def _numbers(values: Mapping[str, float]) -> str:
    unit = {"psnr": " dB"}
    return ", ".join(f"{LABELS[name]} {value:{FORMATS[name]}}{unit.get(name, '')}" for name, value in values.items())


def write_json(path: Path, tokenizer: Tokenizer, source: str, report: TokenizerReport) -> None:
    """The report, and what it is of.

    Raises:
        RunFailed: the file cannot be written.
    """
    origin = {"tokenizer": str(tokenizer.path), "weights": tokenizer.config.get("weights", {}), "data": source}
    pyramid = {"pyramid": tokenizer.pyramid.to_dict()}
    try:
        save_json(path, origin | pyramid | {"reconstruction": report.reconstruction} | dataclasses.asdict(report))
    except OSError as error:
        raise RunFailed(f"--json {path} could not be written ({error.strerror}).") from error
