"""`distill`: from options to a run of stage 2."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import torch

from patches import Upstream, load_upstream
from refocus_ext.distill.budget import SMALLER, budget_of, print_activations
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
    rate_note,
    require_memory,
    sizes,
    step_flops,
    teacher_geometry,
    why_preset,
)
from refocus_ext.distill.recipe import DistillRecipe, DistillWeights
from refocus_ext.distill.start import Start, Wanted, plan_start, read_start
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.kinds import FROZEN
from refocus_ext.distill.teacher.source import TeacherSource
from refocus_ext.distill.teacher_options import check_shown, teacher_settings, teacher_source
from refocus_ext.distill.training import DistillTraining
from refocus_ext.engine.checks import check_classes, check_gpu_memory, check_init, check_share
from refocus_ext.engine.devices import autocast_dtype, kind_of, precision_name
from refocus_ext.engine.distributed import World, join_world, planned, preflight_device
from refocus_ext.engine.dry_run import print_whole_run
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.memory.plan import free_memory
from refocus_ext.engine.run_folder import RunFolder, check_run_folder, require_space, schedule_for
from refocus_ext.engine.same_run import RunIdentity, file_meaning
from refocus_ext.engine.training import RunPlan, TrainingData
from refocus_ext.errors import named, offering
from refocus_ext.images.checks import SmallImage, check_images
from refocus_ext.images.class_numbers import class_list, digest_of, numbers_in_use, renumbered
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.views import ViewPlan
from refocus_ext.options.kinds import AUTO
from refocus_ext.storage.atomic import save_json
from refocus_ext.tokens.bare_tokenizer import ASSUMED_BY, Assumed, WrongAssumption, open_tokenizer
from refocus_ext.tokens.cache import CacheSource, build_cache, check_cache, default_folder, open_cache
from refocus_ext.tokens.cache import summary as cache_summary
from refocus_ext.tokens.held_out import divided, share_of
from refocus_ext.tokens.index import FILE, precision_of
from refocus_ext.tokens.planned_tokenizer import planned_tokenizer
from refocus_ext.tokens.tokenize import pick_precision, prepare
from refocus_ext.tokens.trained_tokenizer import Tokenizer, require_trained


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
    gone: str  # --init, if it is needed no more and not there any more
    source: TeacherSource | None  # of --teacher-from


def main(options: DistillOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        return _run(complete(options), world)


def preflight(options: DistillOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in each of `processes` processes; uses no GPU and writes nothing."""
    if options.gpu_memory:  # a plan for GPUs elsewhere, which one process makes
        return
    options = complete(options)
    device = preflight_device(options.device)
    upstream, world = load_upstream(), World(0, processes, device)
    prepared = prepare_run(upstream, options, torch.device("cpu"))
    check(options, prepared, world)
    with contextlib.redirect_stdout(io.StringIO()):  # the run prints its plan itself
        within_memory(upstream, options, prepared, world, kind_of(device).free_memory(device))


def check(options: DistillOptions, prepared: Prepared, world: World) -> None:
    """Raises UsageError if the run cannot begin as planned: its batch, its tokens, its folder, space for it.
    Writes nothing."""
    check_share(options, prepared.train, world.size)
    check_shown(options, world.size)
    with named("--tokens-precision"):
        precision = tokens_precision(options, prepared.tokenizer, world.device)
    if options.cache != "off":
        with named("--cache"):
            check_cache(
                cache_folder(options, prepared.tokenizer),
                cache_source(options, prepared.tokenizer, prepared.train, precision),
                world.device,
            )
    out, fresh = Path(options.out), options.resume == "never"
    if not fresh:
        check_classes(out, prepared.train.classes)
    check_run_folder(out, run_identity(options, prepared, world), fresh=fresh, extend=options.extend)
    require_space(out, disk_of(options, prepared.size), fresh=fresh)


def disk_of(options: DistillOptions, size: Sizes) -> int:
    """Bytes of the checkpoints and weights of a run."""
    return (options.keep + 1) * size.checkpoint + 2 * size.weights


def within_memory(
    upstream: Upstream, options: DistillOptions, prepared: Prepared, world: World, free: int | None
) -> DistillOptions:
    """The options with as many micro-batches as "auto" is; rank 0 prints what the run needs. Where no one asks, activations
    are not counted: a CPU can swap.

    Args:
        free: bytes, before the networks are built.

    Raises:
        UsageError: its batch cannot be divided, or it does not fit into the memory of its device.
    """
    device, size = world.device, prepared.size
    require_memory(size.memory // (world.size if options.parallel == "fsdp" else 1), device, options, free)
    if kind_of(device).swaps and options.accumulate != AUTO and not options.dry_run:
        return options
    check_share(options, prepared.train, world.size)
    networks = network_plan(options, prepared.classes, device, source=prepared.source)
    cost, budget = budget_of(
        upstream, options, networks, prepared.geometry, prepared.tokenizer, size, device, world.size, free
    )
    options = options.replace(accumulate=budget.choose(options.accumulate))
    world.say(budget.line(options.accumulate, device))
    if options.dry_run and world.main:
        print_cost(size, options)
        print_activations(options, cost, networks.attention)
        print_whole_run(options, world, flops=step_flops(size, options), disk=disk_of(options, size))
    budget.require(options.accumulate, device, SMALLER)
    return options


def prepare_run(upstream: Upstream, options: DistillOptions, device: torch.device) -> Prepared:
    """Checks the options against each other, the tokenizer and the data.

    Raises:
        UsageError: they do not fit, or something is missing.
    """
    check_options(options)
    with named("--tokenizer"), offering(ASSUMED_BY, WrongAssumption):
        tokenizer = tokenizer_of(options, device)
        with offering("--unfinished takes it as it is"):
            if not options.unfinished:
                require_trained(tokenizer)
    with named("--val-share"):
        share = share_of(tokenizer, options.val_share)
    with named("--data"):
        train, val = divided(tokenizer, options.data, share)
    own = train.classes
    if options.class_numbers:
        with named("--class-numbers"):
            numbers = class_list(options.class_numbers)
            train, val = renumbered(train, numbers), renumbered(val, numbers)
    classes = check_data(options, train, val)
    gone = check_init(options, Path(options.out), f"VAR weights such as var_d{options.depth}.pth")
    start = starting_weights(options, tokenizer, classes, len(train.classes)) if options.init and not gone else None
    with named("--data"), offering("--small-images upsample", SmallImage):
        small = tokenizer.small_images(options.small_images)
        note = check_images(train, tokenizer.trained_with.image_size, small)
        check_images(val, tokenizer.trained_with.image_size, "upsample")
    source = None
    if options.teacher == FROZEN:
        source = teacher_source(options, student_entry(options, classes), vae_entry(tokenizer), tokenizer)
    geometry = source.geometry if source else teacher_geometry(options, tokenizer, upsamples=note is not None)
    size = sizes(upstream, options, geometry, tokenizer, classes)
    found = (note, numbers_note(options, own, train, classes), rate_note(options))
    notes = tuple(dict.fromkeys(train.notes() + val.notes())) + tuple(line for line in found if line)
    return Prepared(tokenizer, train, val, classes, geometry, size, start, notes, gone, source)


def tokenizer_of(options: DistillOptions, device: torch.device) -> Tokenizer:
    """That of the run or file; where a plan comes before the run of stage 1, an untrained one."""
    run = Path(options.tokenizer)
    if options.dry_run and not run.exists():
        return planned_tokenizer(run, options.preset, options.data, options.val_share or 0.0)
    assumed = Assumed(options.patch_nums, options.blur or None, options.focus_states, options.rho_max)
    return open_tokenizer(run, device, assumed)


def starting_weights(options: DistillOptions, tokenizer: Tokenizer, classes: int, of_data: int) -> Start | None:
    """What the options say about the weights to start from.

    Raises:
        UsageError: they do not fit.
    """
    theirs = tokenizer.trained_with
    shared_aln = options.shared_aln == "on"
    wanted = Wanted(options.depth, shared_aln, theirs.patch_nums, theirs.codebook_size, theirs.latent_channels)
    with named("--init"):
        read, of_file = read_start(Path(options.init), wanted)
    with named("--init-classes"):
        return plan_start(read, of_file, classes, options.init_classes, of_data)


def _run(options: DistillOptions, world: World) -> int:
    check_gpu_memory(options)
    joined, world = world, planned(world, options.gpu_memory) if options.dry_run else world
    upstream = load_upstream()
    world.say(upstream.describe())
    prepared = prepare_run(upstream, options, joined.device)
    tokenizer, train, val, classes, geometry, size, start, notes, gone, source = prepared
    prepare(tokenizer)
    world.say(why_preset(options, tokenizer))
    for note in notes:
        world.say(f"note: {note}")
    if world.main:
        print_plan(options, tokenizer, geometry, train, classes, size, world.device, start)
    options = within_memory(upstream, options, prepared, world, free_memory(joined, options.gpu_memory))
    check(options, prepared, world)
    if options.dry_run:
        return 0
    with Interruption() as interruption:
        world.barrier()  # rank 0 changes the folder only after the others have checked it
        run = open_run(options, prepared, upstream, world) if world.main else None
        world.barrier()  # the others read the folder only after rank 0 has prepared it
        data = training_data(options, tokenizer, train, world, interruption)
        if data is None:
            return interruption.agreed(world)
        networks = build_networks(
            network_plan(options, classes, world.device, start, source), upstream, tokenizer, geometry, world.device
        )
        recipe = recipe_of(options, held_out=val != train)
        plan = RunPlan.of(options, schedule_for(world, Path(options.out)), gone)
        training = DistillTraining(plan, recipe, world, run, tokenizer, networks, data, val)
        training.memory.checkpointing = not options.grad_checkpoint
        code = training.fit(interruption)
    if code == 0:
        world.say(f"\nnext: bash run.sh sample --student {shlex.quote(options.out)}")
    return code


def recipe_of(options: DistillOptions, held_out: bool) -> DistillRecipe:
    """What the options say about training and validation."""
    return DistillRecipe(
        depth=options.depth,
        lr=options.lr,
        teacher_lr=options.teacher_lr,
        weights=DistillWeights(
            options.lambda_feat, options.lambda_logit, options.feature_distance, options.temperature_logit
        ),
        precision=options.precision,
        tokens_precision=options.tokens_precision,
        sharded=options.parallel == "fsdp",
        crop_scale=options.crop_scale,
        val_images=options.val_images,
        samples=options.samples,
        log_every=options.log_every,
        held_out=held_out,
        demo=options.preset == "demo",
        shown=options.teacher_aliases,
    )


def attention_of(options: DistillOptions, device: torch.device) -> str:
    """The attention of the training pass; "auto" is the device's."""
    return kind_of(device).attention if options.attention == "auto" else options.attention


def network_plan(
    options: DistillOptions,
    classes: int,
    device: torch.device,
    start: Start | None = None,
    source: TeacherSource | None = None,
) -> NetworkPlan:
    """What the options say about the networks."""
    return NetworkPlan(
        depth=options.depth,
        classes=classes,
        shared_aln=options.shared_aln == "on",
        teacher=options.teacher,
        attention=attention_of(options, device),
        grad_checkpoint=options.grad_checkpoint,
        compile=options.compile,
        start=start,
        seed=options.seed,
        settings=teacher_settings(options, source),
    )


def run_identity(options: DistillOptions, prepared: Prepared, world: World) -> RunIdentity:
    """What makes another invocation the same run: the options, and the weights of the tokenizer."""
    data = prepared.train.identity()
    same = options.identity() | {"tokenizer": prepared.tokenizer.checksums()}
    if not (prepared.tokenizer.bare and "part" in data):  # it held nothing out, or it is that of the tokenizer
        same.pop("val_share")
    if options.class_numbers:  # by its content: the file may be at another place
        same["class_numbers"] = digest_of(class_list(options.class_numbers))
    teacher = {"teacher_from": prepared.source.checksum} if prepared.source else {}
    return RunIdentity(
        options=same,
        meant={
            "data": data,
            "init": file_meaning(options.init),
            "num_classes": prepared.classes,
            "precision": precision_name(autocast_dtype(options.precision, world.device)),
        }
        | teacher,
        told=options.told()
        | {
            "attention": attention_of(options, world.device),
            "processes": world.size,
            "small_images": prepared.tokenizer.small_images(options.small_images),
            "type of device": world.device.type,
        },
        defaults=options.unrecorded(),
        idle=options.idle(),
        command="distill",
    )


def student_entry(options: DistillOptions, classes: int) -> dict[str, Any]:
    """What config.json says of the student's shape."""
    return {"depth": options.depth, "num_classes": classes, "shared_aln": options.shared_aln == "on"}


def vae_entry(tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of the tokens."""
    theirs = tokenizer.trained_with
    return {
        "vocab_size": theirs.codebook_size,
        "z_channels": theirs.latent_channels,
        "ch": theirs.ch,
        "patch_nums": list(theirs.patch_nums),
        "image_size": theirs.image_size,
    }


def open_run(options: DistillOptions, prepared: Prepared, upstream: Upstream, world: World) -> RunFolder:
    """The run folder, with its configuration, class map and a copy of the student's tokenizer."""
    tokenizer, geometry = prepared.tokenizer, prepared.geometry
    weights = tokenizer.checksums()
    config: dict[str, Any] = {
        "options": options.to_dict(),
        "student": student_entry(options, prepared.classes) | {"file": f"var_d{options.depth}.pth"},
        "vae": vae_entry(tokenizer),
        "pyramid": tokenizer.pyramid.to_dict(),
        "teacher": geometry.to_dict() if geometry else None,
        "tokenizer": {"path": str(tokenizer.path), "weights": weights},
        "held_out": prepared.val != prepared.train,  # whether the validation images are others than the training images
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    if len(used := numbers_in_use(prepared.train)) < prepared.classes:
        config["trained_classes"] = used
    run = RunFolder(
        Path(options.out),
        run_identity(options, prepared, world),
        config,
        fresh=options.resume == "never",
        keep=options.keep,
        extend=options.extend,
        log=options.log,
    )
    for note in run.notes:
        print(f"note: {note}")
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    save_json(run.path / "classes.json", list(prepared.train.classes))
    tokenizer.write_vae(run.path / "vae.pth")
    run.record_weights("vae.pth")
    return run


def cache_source(options: DistillOptions, tokenizer: Tokenizer, images: ImageSource, precision: str) -> CacheSource:
    plan = ViewPlan(options.crops, options.hflip, options.seed)
    return CacheSource(tokenizer, images, plan, options.crop_scale, precision)


def cache_folder(options: DistillOptions, tokenizer: Tokenizer) -> Path:
    return Path(options.cache) if options.cache else default_folder(tokenizer)


def tokens_precision(options: DistillOptions, tokenizer: Tokenizer, device: torch.device) -> str:
    """The arithmetic of the encoders; "auto" is that of the token cache where there is one.

    Raises:
        UsageError: tf32 on a device without it.
    """
    if options.tokens_precision == "auto" and options.cache != "off":
        made_in = precision_of(cache_folder(options, tokenizer))
        if made_in:
            return made_in
    return pick_precision(options.tokens_precision, device)


def training_data(
    options: DistillOptions, tokenizer: Tokenizer, images: ImageSource, world: World, interruption: Interruption
) -> TrainingData | None:
    """The token cache, made first if it is missing, or the images themselves; None if making it was interrupted."""
    precision = tokens_precision(options, tokenizer, world.device)
    source = cache_source(options, tokenizer, images, precision)
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
