"""`distill`: from options to a run of stage 2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from patches import Upstream, load_upstream
from refocus_ext.distill.networks import build_networks
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import (
    check_data,
    check_options,
    complete,
    print_cost,
    print_plan,
    require_memory,
    sizes,
    teacher_geometry,
    why_preset,
)
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.training import DistillTraining
from refocus_ext.engine.checkpoints import Checkpoints
from refocus_ext.engine.distributed import World, world
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.engine.training import TrainingData
from refocus_ext.errors import named
from refocus_ext.images.checks import check_images
from refocus_ext.images.source import ImageSource
from refocus_ext.images.sources import find_images
from refocus_ext.images.views import ViewPlan
from refocus_ext.options.shared import identity
from refocus_ext.storage.atomic import copy_file, save_json
from refocus_ext.tokens.cache import CacheSource, build_cache, default_folder, open_cache
from refocus_ext.tokens.cache import summary as cache_summary
from refocus_ext.tokens.index import FILE
from refocus_ext.tokens.tokenize import pick_precision, prepare
from refocus_ext.tokens.trained_tokenizer import Tokenizer, load_tokenizer


def main(options: DistillOptions) -> int:
    """Runs the command; returns its exit code."""
    with world(options.device) as here:
        return _run(complete(options), here)


def _run(options: DistillOptions, here: World) -> int:
    upstream = load_upstream()
    here.say(upstream.describe())
    check_options(options)
    with named("--tokens-precision"):
        pick_precision(options.tokens_precision, here.device)
    with named("--tokenizer"):
        tokenizer = prepare(load_tokenizer(Path(options.tokenizer), here.device))
    here.say(why_preset(options, tokenizer))
    with named("--data"):
        train, val = find_images(options.data or tokenizer.options["data"])
    classes = check_data(options, train, val)
    geometry = teacher_geometry(options, tokenizer)
    with named("--data"):
        note = check_images(train, tokenizer.options["image_size"], options.small_images)
    if note:
        here.say(f"note: {note}")
    size = sizes(upstream, options, geometry, tokenizer, classes)
    if here.main:
        print_plan(options, tokenizer, geometry, train, classes, size, here.device)
    if options.dry_run:
        if here.main:
            print_cost(size, options, here.size)
        return 0
    require_memory(size.memory // (here.size if options.parallel == "fsdp" else 1), here.device, options)
    with Interruption() as interruption:
        run = open_run(options, tokenizer, geometry, upstream, train, classes) if here.main else None
        if run:
            run.require_space((options.keep + 1) * size.checkpoint + 2 * size.weights)
        here.barrier()  # the others look into the folder only after rank 0 has put it in order
        data = training_data(options, tokenizer, train, here, interruption)
        if data is None:
            return interruption.exit_code
        networks = build_networks(options, upstream, tokenizer, geometry, classes, here.device)
        training = DistillTraining(options, here, run, tokenizer, networks, data, val, train.classes)
        return training.fit(interruption)


def open_run(
    options: DistillOptions,
    tokenizer: Tokenizer,
    geometry: TeacherGeometry | None,
    upstream: Upstream,
    images: ImageSource,
    classes: int,
) -> RunFolder:
    """The run folder, with its configuration, class map and a copy of the tokenizer that the student needs."""
    weights = tokenizer.checksums()
    theirs = tokenizer.options
    config = {
        "command": "distill",
        "identity": identity(options) | {"tokenizer": weights},
        "options": dataclasses.asdict(options),
        "student": {
            "depth": options.depth,
            "num_classes": classes,
            "shared_aln": options.shared_aln == "on",
            "file": f"var_d{options.depth}.pth",
        },
        "vae": {
            "vocab_size": theirs["codebook_size"],
            "z_channels": theirs["latent_channels"],
            "ch": theirs["ch"],
            "patch_nums": theirs["patch_nums"],
            "image_size": theirs["image_size"],
        },
        "pyramid": tokenizer.pyramid.to_dict(),
        "teacher": geometry.to_dict() if geometry else None,
        "tokenizer": {"path": str(tokenizer.path), "weights": weights},
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    run = RunFolder(Path(options.out), config, fresh=options.resume == "never")
    run.checkpoints = Checkpoints(run.path / "checkpoints", keep=options.keep)
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    save_json(run.path / "classes.json", list(images.classes))
    copy_file(tokenizer.path / "vae.pth", run.path / "vae.pth")
    run.record_weights("vae.pth")
    return run


def training_data(
    options: DistillOptions, tokenizer: Tokenizer, images: ImageSource, here: World, interruption: Interruption
) -> TrainingData | None:
    """The token cache, made first where it is missing, or the images themselves; None if making it was interrupted."""
    plan = ViewPlan(options.crops, options.hflip, options.seed)
    precision = pick_precision(options.tokens_precision, here.device)
    source = CacheSource(tokenizer, images, plan, options.crop_scale, precision)
    if options.cache == "off":
        return source.crops()
    folder = Path(options.cache) if options.cache else default_folder(tokenizer)
    if not (folder / FILE).is_file():
        here.say(f"there is no token cache in {folder} yet: making it first, as `bash run.sh tokens` would")
    interruption.promise = "stopping after this batch; finished shards stay"
    with named("--cache"):
        built = build_cache(folder, source, here, interruption=interruption, workers=options.workers)
    if built.exit_code:
        return None
    interruption.promise = "saving at the end of this step"
    here.say(f"tokens: {cache_summary(folder, source.layout(), built)}")
    return open_cache(folder, source, here, verify=False)
