"""`bash run.sh bench`: what this project's parts cost beside upstream's, as ratios measured in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from patches import Upstream, load_upstream
from refocus_ext.engine.devices import pick_device
from refocus_ext.errors import UsageError, named
from refocus_ext.evidence.bench import data, distill, environment, sampling, startup
from refocus_ext.evidence.bench.options import BenchOptions
from refocus_ext.evidence.bench.tokenizer import measure, table
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options import shared
from refocus_ext.storage.results import results_file, write_numbers


def main(options: BenchOptions) -> int:
    """Runs the command; returns its exit code."""
    check(options)
    with named("--json"):
        json_file = results_file(options.json) if options.json else None
    upstream = load_upstream()
    print(upstream.describe())
    device = pick_device(options.device)
    if options.gpu_report:
        from refocus_ext.evidence.bench.gpu_report import run

        return run.main(options, upstream, device)
    try:
        pyramid = FocusPyramid(image_size=options.image_size, states=options.focus_states, rho_max=options.rho_max)
        pyramid.states_of(options.patch_nums)
    except ValueError as error:
        raise UsageError(shared.with_options(str(error))) from None
    print(
        f"{options.batch_size} images of {options.image_size} px, {pyramid.states} focus states, {options.codebook_size} codes, on "
        f"{device}; medians of {options.repeats}, interleaved"
    )
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "upstream": upstream.describe(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    for name in ALL if options.section == "all" else (options.section,):
        print(f"\n{name}\n")
        report[name], lines = SECTIONS[name](options, upstream, pyramid, device)
        print("\n".join(lines))
    if json_file:
        with named("--json"):
            write_numbers(json_file, report)
    return 0


def check(options: BenchOptions) -> None:
    """
    Raises:
        UsageError: an option of the report without it, or one that it does not read.
    """
    if not options.gpu_report:
        if wrong := options.given("tiny", "out", "minutes"):
            raise UsageError(f"--{wrong[0]} is an option of --gpu-report; add that, or omit it.")
        return
    others = (
        "image_size",
        "patch_nums",
        "codebook_size",
        "ch",
        "focus_states",
        "rho_max",
        "depth",
        "section",
        "batch_size",
    )
    if wrong := options.given(*others, "repeats"):
        name = wrong[0].replace("_", "-")
        raise UsageError(f"--gpu-report measures sizes of its own and does not read --{name}; omit one of them.")


def _tokenizer(
    options: BenchOptions, upstream: Upstream, pyramid: FocusPyramid, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """What the focus pyramid adds to a tokenizer's work."""
    vae = upstream.build_vae(
        vocab_size=options.codebook_size, ch=options.ch, patch_nums=options.patch_nums, device=device
    )
    x = torch.rand(options.batch_size, 3, options.image_size, options.image_size, device=device) * 2 - 1
    report = measure(vae, pyramid, x, options.repeats)
    return report, table(report)


def _distill(
    options: BenchOptions, upstream: Upstream, pyramid: FocusPyramid, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """A step of distillation beside upstream's, and the teacher's counted overhead."""
    report = distill.measure(
        upstream,
        pyramid,
        options.patch_nums,
        options.codebook_size,
        options.depth,
        options.batch_size,
        options.repeats,
        device,
    )
    rows = distill.overhead_rows(upstream)
    return report | {"overhead": rows}, [*distill.table(report), "", *distill.overhead_table(rows)]


def _sampling(
    options: BenchOptions, upstream: Upstream, _: FocusPyramid, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Sampling beside upstream's, with the same images."""
    report = sampling.measure(
        upstream,
        options.patch_nums,
        options.codebook_size,
        options.repeats,
        device,
        images=options.batch_size,
        depth=options.depth,
    )
    return report, sampling.table(report)


def _data(options: BenchOptions, *_: object) -> tuple[dict[str, Any], list[str]]:
    """Loading images beside torchvision."""
    report = data.measure(options.image_size, options.repeats)
    return report, data.table(report)


def _startup(options: BenchOptions, *_: object) -> tuple[dict[str, Any], list[str]]:
    """The start of commands beside the import of torch."""
    report = startup.measure(options.repeats)
    return report, startup.table(report)


def _environment(options: BenchOptions, *_: object) -> tuple[dict[str, Any], list[str]]:
    """Environment variables of the allocator and the threads, beside each other."""
    report = environment.measure(options.repeats)
    return report, environment.table(report)


SECTIONS: dict[str, Callable[..., tuple[dict[str, Any], list[str]]]] = {
    "tokenizer": _tokenizer,
    "distill": _distill,
    "sampling": _sampling,
    "data": _data,
    "startup": _startup,
    "environment": _environment,
}
ALL = tuple(name for name in SECTIONS if name != "environment")  # which takes long, and is the machine's
