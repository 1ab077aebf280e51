"""Validation of a stage-1 run: prefixes and alias tokens of its validation images, their pictures, its closing lines."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patches.protocols import device_of
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import chunks, spread
from refocus_ext.optics.pyramid import alias_views
from refocus_ext.tokenizer.alias.explained_variance import ExplainedVariance, explained_warnings
from refocus_ext.tokenizer.averages import Averages
from refocus_ext.tokenizer.picture import draw_alias, draw_prefixes
from refocus_ext.tokenizer.prefixes import PrefixReport, validate
from refocus_ext.vector_quantization import codebook_use_of


def summary(report: PrefixReport, codes: int) -> str:
    """'prefixes against F_k 20.1 21.0 22.3 dB; codes in use per scale 12 60 300 of 512'."""
    focus = " ".join(f"{value:.1f}" for value in report.psnr_focus_K)
    usage = " ".join(f"{round(codes * value / 100)}" for value in report.usage_S)
    return f"prefixes against F_k {focus} dB; codes in use per scale {usage} of {codes}"


class Validation:
    """Validates the finished weights of a run on its validation images, logs it, and remembers the last result.

    Args:
        run: the run folder; this process is rank 0.
        batch: images per batch.
        most: largest number of images, spread evenly.
        held_out: whether training never shows these images.
    """

    def __init__(
        self, run: RunFolder, steps: int, data: Crops, averages: Averages, batch: int, most: int, held_out: bool
    ) -> None:
        self.run, self.steps, self.data, self.averages = run, steps, data, averages
        self.batch, self.most, self.held_out = batch, most, held_out
        self.report: PrefixReport | None = None
        self.explained: list[float] = []

    def batches(self) -> Iterator[Tensor]:
        """Centre crops, on the networks' device."""
        device = device_of(self.averages.vae)
        for chunk in chunks(spread(range(len(self.data)), self.most), self.batch):
            yield torch.stack([self.data.told(index).image for index in chunk]).to(device)

    def prefixes(self, step: int, progress: Progress) -> None:
        """Prefixes of the structure tokens, and their codebook usage."""
        vae = self.averages.vae
        self.report = validate(vae, self.batches())
        codes = vae.quantize.vocab_size
        marks = {f"collapsed_scale{s}": 1.0 for s in self.report.collapsed_scales(codes)}
        self.run.log(step, self.report.flat() | marks, "val/")
        progress.say(f"step {step}: {summary(self.report, codes)}")
        for warning in self.report.collapsed(codes):
            progress.say(f"warning: {warning}")

    @torch.no_grad()
    def alias(self, step: int, progress: Progress) -> None:
        """Explained variance of the alias tokens, use of their codebook, and their picture."""
        alias, pyramid = self.averages.alias, self.averages.vae.focus_pyramid
        training = alias.training
        alias.eval()
        total, idx = ExplainedVariance(pyramid.states - 1), []
        for x in self.batches():
            views = alias_views(pyramid, x)
            idx.append(alias.tokens(views))
            total.update(views, alias.reconstruct(idx[-1]))
        self.explained = total.compute()
        states = [torch.cat([t.flatten() for t in state]) for state in zip(*idx, strict=True)]
        for k, (explained, tokens) in enumerate(zip(self.explained, states, strict=True), start=1):
            usage, perplexity = codebook_use_of(tokens, alias.vocab_size)
            names = {f"alias_explained{k}": explained, f"alias_usage{k}": usage, f"alias_perplexity{k}": perplexity}
            self.run.log(step, names, "val/")
        shown = " ".join(f"{100 * value:.0f}%" for value in self.explained)
        progress.say(f"step {step}: alias tokens explain {shown} of the residuals' variance")
        draw_alias(self.run, alias, pyramid, self.data, step, self.steps)
        alias.train(training)

    def picture(self, step: int, quantized: bool) -> None:
        """picture.png."""
        draw_prefixes(self.run, self.averages.vae, self.data, step, self.steps, quantized, self.most)

    def closing_lines(self) -> list[str]:
        """The lines that a finished run prints: its files and the last validation."""
        report, alias = self.report, self.averages.alias
        assert report is not None
        lines = ["", f"trained {self.steps} steps; the run is in {self.run.path}:"]
        lines += ["  picture.png    original, focus states and their reconstructions"]
        lines += ["  vae.pth        the structure tokenizer as a plain upstream state dict"]
        if alias is not None:
            lines += ["  alias.png      alias residuals and their reconstructions from tokens"]
            lines += ["  alias.pth      the alias tokenizer"]
        lines += [self.run.metrics_line(), ""]
        columns = {"prefix against F_k": report.psnr_focus_K, "prefix against x": report.psnr_sharp_K}
        if report.psnr_upstream_K is not None:
            columns["against F_k, decoded by upstream"] = report.psnr_upstream_K
        lines += ["   ".join(["focus state", *columns])]
        for k, row in enumerate(zip(*columns.values(), strict=True), start=1):
            cells = [f"{value:.2f} dB".rjust(len(name)) for name, value in zip(columns, row, strict=True)]
            lines += ["   ".join([f"{k:>11}", *cells])]
        if report.disagreement is not None:
            lines += [f"the latents of neighbouring states differ by {100 * report.disagreement:.0f}% of their norm"]
        if alias is not None:
            lines += ["", self._explained_line(), *self._explained_warnings(alias.geometry.stride)]
        return lines

    def _explained_line(self) -> str:
        shown = ", ".join(f"{100 * value:.1f}%" for value in self.explained)
        views = " and ".join(f"A{k}" for k in range(1, len(self.explained) + 1))
        where = "held-out images" if self.held_out else "centre crops of the training images"
        return f"alias tokens explain {shown} of the variance of {views} on {where}"

    def _explained_warnings(self, stride: int) -> list[str]:
        return [f"warning: {warning}" for warning in explained_warnings(self.explained, stride)]
