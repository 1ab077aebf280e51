"""`bash run.sh tokens --tokenizer RUN`: tokenizes the training images once, for `distill` to read."""

from __future__ import annotations

from pathlib import Path

import torch

from patches import load_upstream
from refocus_ext.counting import counted
from refocus_ext.engine.distributed import World, join_world, preflight_device
from refocus_ext.engine.interruption import Interruption
from refocus_ext.errors import named, offering
from refocus_ext.images.checks import SmallImage, check_images
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import split_name
from refocus_ext.images.views import ViewPlan
from refocus_ext.options.presets import preset, preset_of_tokenizer
from refocus_ext.tokens.bare_tokenizer import ASSUMED_BY, Assumed, WrongAssumption, open_tokenizer
from refocus_ext.tokens.cache import CacheSource, build_cache, check_cache, default_folder, summary
from refocus_ext.tokens.held_out import divided, share_of
from refocus_ext.tokens.index import size_text
from refocus_ext.tokens.options import TokensOptions
from refocus_ext.tokens.shards import Layout
from refocus_ext.tokens.tokenize import pick_precision
from refocus_ext.tokens.trained_tokenizer import Tokenizer, require_trained


def main(options: TokensOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        return _run(options, world)


def preflight(options: TokensOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in every process; uses no GPU and writes nothing."""
    with named("--precision"):
        device = preflight_device(options.device)
        precision = pick_precision(options.precision, device)
    source, _, _ = prepare(options, torch.device("cpu"), precision)
    with named("--out"):
        check_cache(cache_folder(options, source), source, device)


def prepare(options: TokensOptions, device: torch.device, precision: str) -> tuple[CacheSource, str, tuple[str, ...]]:
    """What the cache is made from, the name of its images, and notes on them.

    Raises:
        UsageError: the tokenizer or the images are missing, or do not fit.
    """
    with named("--tokenizer"), offering(ASSUMED_BY, WrongAssumption):
        tokenizer = open_tokenizer(Path(options.tokenizer), device, assumed_by(options))
        with offering("--unfinished takes it as it is"):
            if not options.unfinished:
                require_trained(tokenizer)
    with named("--val-share"):
        share = share_of(tokenizer, options.val_share)
    with named("--data"):
        images, name = train_images(tokenizer, options.data, share)
        with offering("--small-images upsample", SmallImage):
            note = check_images(images, tokenizer.pyramid.image_size, tokenizer.small_images(options.small_images))
    notes = images.notes() + ((note,) if note else ())
    plan = ViewPlan(options.crops or default_crops(options), options.hflip, options.seed)
    return CacheSource(tokenizer, images, plan, options.crop_scale, precision), name, notes


def default_crops(options: TokensOptions) -> int:
    """As many as `distill` with this tokenizer and these images, and no other option, reads from a cache."""
    crops = preset(preset_of_tokenizer(options.tokenizer, options.data), "distill")["crops"]
    assert isinstance(crops, int)
    return crops


def assumed_by(options: TokensOptions) -> Assumed:
    return Assumed(options.patch_nums, options.blur or None, options.focus_states, options.rho_max)


def cache_folder(options: TokensOptions, source: CacheSource) -> Path:
    return Path(options.out) if options.out else default_folder(source.tokenizer)


def _run(options: TokensOptions, world: World) -> int:
    world.say(load_upstream().describe())
    with named("--precision"):
        precision = pick_precision(options.precision, world.device)
    source, name, notes = prepare(options, world.device, precision)
    for note in notes:
        world.say(f"note: {note}")
    layout, folder, theirs = source.layout(), cache_folder(options, source), source.tokenizer.trained_with
    for line in plan_lines(source.tokenizer, name, source.plan, layout):
        world.say(line)
    processes = f", {world.size} processes" if world.size > 1 else ""
    world.say(f"cache: {folder}, encoded in {precision} on {world.device}{processes}")
    with named("--out"):
        check_cache(folder, source, world.device)
    if options.dry_run:
        return 0
    world.barrier()  # every process has checked the folder before rank 0 writes
    workers = theirs.workers if options.workers is None else options.workers
    with Interruption("stopping after this batch; finished shards are kept") as interruption, named("--out"):
        built = build_cache(
            folder,
            source,
            world,
            interruption=interruption,
            batch_size=options.batch_size,
            workers=workers,
        )
    if not built.exit_code:
        world.say(summary(folder, layout, built))
    return built.exit_code


def train_images(tokenizer: Tokenizer, data: str, share: float) -> tuple[ImageSource, str]:
    """The training images of `divided`, and their name.

    Raises:
        UsageError: they are missing, or `distill` could not validate.
    """
    images, _ = divided(tokenizer, data, share)
    return images, split_name(tokenizer.data(data), "train", images)


def plan_lines(tokenizer: Tokenizer, name: str, plan: ViewPlan, layout: Layout) -> list[str]:
    """Prints what the cache will hold."""
    size = tokenizer.pyramid.image_size
    mirrored = ", each mirrored as well" if plan.hflip else ""
    return [
        f"tokenizer: {tokenizer.path}, crops of {size} px",
        *(f"note: {note}" for note in tokenizer.notes),
        f"images: {layout.images:,} of {name}, {counted(plan.views, 'view')} of each "
        f"({counted(plan.crops, 'random crop')}{mirrored})",
        f"tokens: {layout.structure} structure + {layout.alias} alias per view, {layout.tokens:,} in all, "
        f"{size_text(layout.bytes)} in {layout.shards} shard{'s' * (layout.shards > 1)}",
    ]
