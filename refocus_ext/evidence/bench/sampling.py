"""The sampling section of `bench`: fast sampling beside upstream's on one VAR in one process, images asserted equal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from patches import FastSampling, Upstream, patched
from patches.protocols import VAR, VQVAE
from refocus_ext.evidence.bench.clock import now


def measure(
    upstream: Upstream,
    patch_nums: Sequence[int],
    codes: int,
    repeats: int,
    device: torch.device,
    *,
    images: int = 1,
    depth: int = 8,
) -> dict[str, Any]:
    """Median seconds of sampling and of decoding, interleaved after one untimed round.

    The weights are random: the work does not depend on them. The decoder is a small one, since it is the same in both.

    Raises:
        AssertionError: the two draw different images in fp32 on a CPU.
    """
    vae = upstream.build_vae(vocab_size=codes, ch=32, patch_nums=patch_nums, device=device)
    var = upstream.build_var(vae, depth=depth, device=device).requires_grad_(False).eval()
    same = True
    runs: dict[str, list[float]] = {"upstream": [], "fast": [], "decode": []}
    for round_number in range(repeats + 1):
        stock, seconds = _sampled(var, images, device)
        with patched(var, FastSampling()):
            fast, fast_seconds = _sampled(var, images, device)
        same = torch.equal(stock, fast)
        assert same or device.type != "cpu", "fast sampling drew other images than upstream"
        if round_number:
            for name, value in zip(runs, (seconds, fast_seconds, _decode(vae, images, device)), strict=True):
                runs[name].append(value)
    median = {name: statistics.median(values) for name, values in runs.items()}
    return {
        "depth": depth,
        "images": images,
        "same_images": same,
        "seconds": median,
        "fast_over_upstream": median["fast"] / median["upstream"],
    }


def _sampled(var: VAR, images: int, device: torch.device) -> tuple[torch.Tensor, float]:
    began = now(device)
    drawn = var.autoregressive_infer_cfg(
        B=images, label_B=torch.arange(images, device=device), g_seed=0, cfg=1.5, top_k=min(900, var.V), top_p=0.96
    )
    return drawn, now(device) - began


@torch.no_grad()
def _decode(vae: VQVAE, images: int, device: torch.device) -> float:
    side = vae.quantize.v_patch_nums[-1]
    f_hat = torch.randn(images, vae.Cvae, side, side, device=device)
    began = now(device)
    vae.fhat_to_img(f_hat)
    return now(device) - began


def table(report: dict[str, Any]) -> list[str]:
    """The section as lines."""
    seconds = report["seconds"]
    return [
        f"sampling {report['images']} image{'s' * (report['images'] > 1)} with a d{report['depth']} student: upstream "
        f"{seconds['upstream']:.3f} s, fast {seconds['fast']:.3f} s, of which decoding (ch 32) {seconds['decode']:.3f} s",
        f"fast sampling against upstream's         {report['fast_over_upstream']:.2f} times the time, "
        f"{'the same images' if report['same_images'] else 'images differ in the last bits'}",
    ]
