"""`distill`: from options to a run of stage 2."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from patches import Upstream, load_upstream
from refocus_ext.distill.networks import NetworkPlan, build_networks
from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import (
    Sizes,
    check_data,
    check_options,
    complete,
    numbers_note,
    print_cost,
    print_plan,
    require_memory,
    sizes,
    teacher_geometry,
    why_preset,
)
from refocus_ext.distill.recipe import DistillRecipe, DistillWeights
from refocus_ext.distill.start import Start, Wanted, plan_start, read_start
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.training import DistillTraining
from refocus_ext.engine.checks import check_share
from refocus_ext.engine.distributed import World, join_world, preflight_device
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.run_folder import RunFolder, check_run_folder
from refocus_ext.engine.training import RunPlan, TrainingData
from refocus_ext.errors import named
from refocus_ext.images.checks import check_images
from refocus_ext.images.class_names import check_class_map
from refocus_ext.images.class_numbers import class_list, digest_of, renumbered
from refocus_ext.images.source import ImageSource
from refocus_ext.images.sources import find_images
from refocus_ext.images.views import ViewPlan
from refocus_ext.storage.atomic import save_json
from refocus_ext.tokens.bare_tokenizer import Assumed, open_tokenizer
from refocus_ext.tokens.cache import CacheSource, build_cache, default_folder, open_cache
from refocus_ext.tokens.cache import summary as cache_summary
from refocus_ext.tokens.index import FILE, read_index
from refocus_ext.tokens.tokenize import pick_precision, prepare
from refocus_ext.tokens.trained_tokenizer import Tokenizer


class Prepared(NamedTuple):
    """Everything checked and loaded before the run starts."""

    tokenizer: Tokenizer
    train: ImageSource
    val: ImageSource
    classes: int
    geometry: TeacherGeometry | None
    size: Sizes
    start: Start | None
    notes: tuple[str, ...]


def main(options: DistillOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        return _run(complete(options), world)


def preflight(options: DistillOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in each of `processes` processes; uses no GPU and writes nothing."""
    options = complete(options)
    with named("--tokens-precision"):
        precision = pick_precision(options.tokens_precision, preflight_device(options.device))
    prepared = prepare_run(load_upstream(), options, torch.device("cpu"))
    if options.dry_run:
        return
    check_share(options, prepared.train, processes)
    if options.cache != "off":
        source = cache_source(options, prepared.tokenizer, prepared.train, precision)
        with named("--cache"):
            read_index(cache_folder(options, prepared.tokenizer), source.identity())
    if options.resume != "never":
        check_run_folder(Path(options.out), run_identity(options, prepared.tokenizer))
        check_class_map(Path(options.out) / "classes.json", prepared.train.classes)


def prepare_run(upstream: Upstream, options: DistillOptions, device: torch.device) -> Prepared:
    """Checks the options against each other, the tokenizer and the data.

    Raises:
        UsageError: they do not fit, or something is missing.
    """
    check_options(options)
    with named("--tokenizer"):
        assumed = Assumed(options.patch_nums, options.blur or None, options.focus_states, options.rho_max)
        tokenizer = open_tokenizer(Path(options.tokenizer), device, assumed)
    with named("--data"):
        train, val = find_images(tokenizer.data(options.data), tokenizer.trained_with.val_share)
    own = train.classes
    if options.class_numbers:
        with named("--class-numbers"):
            numbers = class_list(options.class_numbers)
            train, val = renumbered(train, numbers), renumbered(val, numbers)
    classes = check_data(options, train, val)
    start = starting_weights(options, tokenizer, classes, len(train.classes))
    geometry = teacher_geometry(options, tokenizer)
    with named("--data"):
        note = check_images(train, tokenizer.trained_with.image_size, options.small_images)
        check_images(val, tokenizer.trained_with.image_size, "upsample")
    size = sizes(upstream, options, geometry, tokenizer, classes)
    found = (note, numbers_note(options, own, train, classes))
    notes = tuple(dict.fromkeys(train.notes() + val.notes())) + tuple(line for line in found if line)
    return Prepared(tokenizer, train, val, classes, geometry, size, start, notes)


def starting_weights(options: DistillOptions, tokenizer: Tokenizer, classes: int, of_data: int) -> Start | None:
    """What the options say about the weights to start from.

    Raises:
        UsageError: they do not fit.
    """
    if not options.init:
        return None
    theirs = tokenizer.trained_with
    shared_aln = options.shared_aln == "on"
    wanted = Wanted(options.depth, shared_aln, theirs.patch_nums, theirs.codebook_size, theirs.latent_channels)
    with named("--init"):
        read, of_file = read_start(Path(options.init), wanted)
    with named("--init-classes"):
        return plan_start(read, of_file, classes, options.init_classes, of_data)


def _run(options: DistillOptions, world: World) -> int:
    upstream = load_upstream()
    world.say(upstream.describe())
    with named("--tokens-precision"):
        pick_precision(options.tokens_precision, world.device)
    tokenizer, train, val, classes, geometry, size, start, notes = prepare_run(upstream, options, world.device)
    prepare(tokenizer)
    world.say(why_preset(options, tokenizer))
    for note in notes:
        world.say(f"note: {note}")
    if world.main:
        print_plan(options, tokenizer, geometry, train, classes, size, world.device, start)
    if options.dry_run:
        if world.main:
            print_cost(size, options, world.size)
        return 0
    require_memory(size.memory // (world.size if options.parallel == "fsdp" else 1), world.device, options)
    with Interruption() as interruption:
        run = (
            open_run(options, tokenizer, geometry, upstream, train, classes, held_out=val != train)
            if world.main
            else None
        )
        if run:
            run.require_space((options.keep + 1) * size.checkpoint + 2 * size.weights)
        world.barrier()  # the others read the folder only after rank 0 has prepared it
        data = training_data(options, tokenizer, train, world, interruption)
        if data is None:
            return interruption.agreed(world)
        networks = build_networks(network_plan(options, classes, start), upstream, tokenizer, geometry, world.device)
        recipe = recipe_of(options, held_out=val != train)
        training = DistillTraining(RunPlan.of(options), recipe, world, run, tokenizer, networks, data, val)
        return training.fit(interruption)


def recipe_of(options: DistillOptions, held_out: bool) -> DistillRecipe:
    """What the options say about training and validation."""
    return DistillRecipe(
        depth=options.depth,
        lr=options.lr,
        teacher_lr=options.teacher_lr,
        weights=DistillWeights(options.lambda_feat, options.lambda_logit),
        precision=options.precision,
        tokens_precision=options.tokens_precision,
        sharded=options.parallel == "fsdp",
        crop_scale=options.crop_scale,
        val_images=options.val_images,
        samples=options.samples,
        log_every=options.log_every,
        held_out=held_out,
        demo=options.preset == "demo",
    )


def network_plan(options: DistillOptions, classes: int, start: Start | None = None) -> NetworkPlan:
    """What the options say about the networks."""
    return NetworkPlan(
        depth=options.depth,
        classes=classes,
        shared_aln=options.shared_aln == "on",
        teacher=options.teacher,
        attention=options.attention,
        grad_checkpoint=options.grad_checkpoint,
        compile=options.compile,
        start=start,
        seed=options.seed,
    )


def run_identity(options: DistillOptions, tokenizer: Tokenizer) -> dict[str, object]:
    """What identifies a run: its options and the weights of the tokenizer."""
    identity = options.identity() | {"tokenizer": tokenizer.checksums()}
    if options.class_numbers:  # by its content: the file may be at another place
        identity["class_numbers"] = digest_of(class_list(options.class_numbers))
    return identity


def open_run(
    options: DistillOptions,
    tokenizer: Tokenizer,
    geometry: TeacherGeometry | None,
    upstream: Upstream,
    images: ImageSource,
    classes: int,
    held_out: bool,
) -> RunFolder:
    """The run folder, with its configuration, class map and a copy of the student's tokenizer."""
    weights = tokenizer.checksums()
    theirs = tokenizer.trained_with
    config = {
        "command": "distill",
        "identity": run_identity(options, tokenizer),
        "options": options.to_dict(),
        "student": {
            "depth": options.depth,
            "num_classes": classes,
            "shared_aln": options.shared_aln == "on",
            "file": f"var_d{options.depth}.pth",
        },
        "vae": {
            "vocab_size": theirs.codebook_size,
            "z_channels": theirs.latent_channels,
            "ch": theirs.ch,
            "patch_nums": list(theirs.patch_nums),
            "image_size": theirs.image_size,
        },
        "pyramid": tokenizer.pyramid.to_dict(),
        "teacher": geometry.to_dict() if geometry else None,
        "tokenizer": {"path": str(tokenizer.path), "weights": weights},
        "held_out": held_out,  # whether the validation images are others than the training images
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    run = RunFolder(Path(options.out), config, fresh=options.resume == "never", keep=options.keep)
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    check_class_map(run.path / "classes.json", images.classes)
    save_json(run.path / "classes.json", list(images.classes))
    tokenizer.write_vae(run.path / "vae.pth")
    run.record_weights("vae.pth")
    return run


def cache_source(options: DistillOptions, tokenizer: Tokenizer, images: ImageSource, precision: str) -> CacheSource:
    plan = ViewPlan(options.crops, options.hflip, options.seed)
    return CacheSource(tokenizer, images, plan, options.crop_scale, precision)


def cache_folder(options: DistillOptions, tokenizer: Tokenizer) -> Path:
    return Path(options.cache) if options.cache else default_folder(tokenizer)


def training_data(
    options: DistillOptions, tokenizer: Tokenizer, images: ImageSource, world: World, interruption: Interruption
) -> TrainingData | None:
    """The token cache, made first if it is missing, or the images themselves; None if making it was interrupted."""
    source = cache_source(options, tokenizer, images, pick_precision(options.tokens_precision, world.device))
    if options.cache == "off":
        return source.crops()
    folder = cache_folder(options, tokenizer)
    if not (folder / FILE).is_file():
        world.say(f"{folder} has no token cache yet: making it first, as `bash run.sh tokens` does")
    interruption.promise = "stopping after this batch; finished shards are kept"
    with named("--cache"):
        built = build_cache(folder, source, world, interruption=interruption, workers=options.workers)
    if built.exit_code:
        return None
    interruption.promise = "saving at the end of this step"
    world.say(f"tokens: {cache_summary(folder, source.layout(), built)}")
    return open_cache(folder, source, world, verify=False)
