"""`tokenizer`: from options to a run of stage 1."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patches import Upstream, load_upstream
from refocus_ext.engine.distributed import World, world
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.errors import named
from refocus_ext.images.checks import check_images
from refocus_ext.images.source import ImageSource
from refocus_ext.images.sources import find_images
from refocus_ext.options.shared import identity
from refocus_ext.seeds import derived_seed
from refocus_ext.storage.atomic import save_json
from refocus_ext.storage.weights import state_bytes
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.plan import (
    alias_geometry,
    build_vae,
    check_plan,
    make_pyramid,
    print_cost,
    print_plan,
    why_preset,
)
from refocus_ext.tokenizer.training import TokenizerTraining


def main(options: TokenizerOptions) -> int:
    """Runs the command; returns its exit code."""
    with world(options.device) as here:
        return _run(options, here)


def _run(options: TokenizerOptions, here: World) -> int:
    upstream = load_upstream()
    here.say(upstream.describe())
    here.say(why_preset(options))
    if options.init:  # its codebook fits its latents: quantized from the first step
        options = dataclasses.replace(options, warm_autoencoder=0)
    pyramid = make_pyramid(options)
    with named("--data"):
        train, val = find_images(options.data)
    check_plan(options, pyramid, train)
    with named("--data"):
        note = check_images(train, options.image_size, options.small_images)
    for line in (note, *pyramid.rayleigh_warnings()):
        if line:
            here.say(f"note: {line}")
    geometry = alias_geometry(options, pyramid)
    torch.manual_seed(derived_seed(options.seed, 2))
    vae = build_vae(upstream, options, pyramid, here.device)
    if here.main:
        print_plan(options, pyramid, vae, geometry, train, here.device)
    if options.dry_run:
        if here.main:
            print_cost(options, pyramid, vae, here.device, here.size)
        return 0
    lpips = perceptual_loss(options, here.device)
    run = open_run(options, pyramid, geometry, upstream, train) if here.main else None
    if run:
        run.require_space(3 * 3 * state_bytes(vae))
    here.barrier()  # the others look into the folder only after rank 0 has put it in order
    training = TokenizerTraining(options, here, run, vae, geometry, lpips, train, val)
    with Interruption() as interruption:
        return training.fit(interruption)


def perceptual_loss(options: TokenizerOptions, device: torch.device) -> nn.Module | None:
    """LPIPS where it has a weight; its weights file is looked for before any work."""
    if not options.lpips:
        return None
    from refocus_ext.tokenizer.perceptual import load_lpips

    return load_lpips(options.lpips_weights, device)


def open_run(
    options: TokenizerOptions, pyramid: Any, geometry: AliasGeometry | None, upstream: Upstream, images: ImageSource
) -> RunFolder:
    """The run folder, with its configuration and class map written."""
    config = {
        "command": "tokenizer",
        "identity": identity(options),
        "options": dataclasses.asdict(options),
        "pyramid": pyramid.to_dict(),
        "alias": geometry.to_dict() if geometry else None,
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    run = RunFolder(Path(options.out), config, fresh=options.resume == "never")
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    save_json(run.path / "classes.json", list(images.classes))
    return run
