"""`tokenizer`: from options to a run of stage 1."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from patches import Upstream, load_upstream
from patches.protocols import FocusedVQVAE, as_module
from refocus_ext.engine.checks import check_classes, check_gpu_memory, check_init, check_share
from refocus_ext.engine.devices import autocast_dtype, kind_of, precision_name
from refocus_ext.engine.distributed import World, join_world, planned, preflight_device
from refocus_ext.engine.dry_run import print_whole_run
from refocus_ext.engine.interruption import Interruption
from refocus_ext.engine.memory.plan import free_memory
from refocus_ext.engine.run_folder import RunFolder, check_run_folder, require_space, schedule_for
from refocus_ext.engine.same_run import RunIdentity, file_meaning
from refocus_ext.engine.training import RunPlan
from refocus_ext.errors import UsageError, named, offering
from refocus_ext.images.checks import SmallImage, check_images
from refocus_ext.images.crops import Crops
from refocus_ext.images.sources.folder import NoValidation
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_images, find_split
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options.kinds import AUTO
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.atomic import save_json
from refocus_ext.storage.weights import checksum, state_bytes
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.training import AliasTraining
from refocus_ext.tokenizer.budget import SMALLER, budget_of, print_cost
from refocus_ext.tokenizer.options import TokenizerOptions
from refocus_ext.tokenizer.plan import (
    alias_geometry,
    build_vae,
    check_plan,
    make_pyramid,
    only_alias,
    print_plan,
    structure_weights,
    why_preset,
)
from refocus_ext.tokenizer.recipe import CriticRecipe, TokenizerRecipe
from refocus_ext.tokenizer.training import TokenizerTraining
from refocus_ext.tokenizer.validation import Validation


class FrozenNetworks(NamedTuple):
    """Networks of the losses that are loaded before any work, or None where the run has no such loss."""

    lpips: nn.Module | None
    backbone: nn.Module | None  # of the discriminator

    def checksums(self) -> dict[str, str]:
        """By the option that names each network's file."""
        by_option = {"lpips_weights": self.lpips, "disc_weights": self.backbone}
        return {option: checksum(network) for option, network in by_option.items() if network is not None}


class Prepared(NamedTuple):
    """Everything checked and built before the run starts."""

    options: TokenizerOptions
    pyramid: FocusPyramid
    train: ImageSource
    val: ImageSource
    geometry: AliasGeometry | None
    vae: FocusedVQVAE
    notes: list[str]
    gone: str  # --init, if it is needed no more and not there any more


def main(options: TokenizerOptions) -> int:
    """Runs the command; returns its exit code."""
    with join_world(options.device) as world:
        return _run(options, world)


def preflight(options: TokenizerOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in each of `processes` processes; uses no GPU and writes nothing."""
    if options.gpu_memory:  # a plan for GPUs elsewhere, which one process makes
        return
    device = preflight_device(options.device)
    cpu = torch.device("cpu")
    prepared = prepare(load_upstream(), options, cpu)
    frozen, world = frozen_networks(prepared.options, cpu), World(0, processes, device)
    check(prepared, frozen, world)
    with contextlib.redirect_stdout(io.StringIO()):  # the run prints its plan itself
        within_memory(prepared, frozen, world, kind_of(device).free_memory(device))


def check(prepared: Prepared, frozen: FrozenNetworks, world: World) -> None:
    """Raises UsageError if the run cannot begin as planned: its batch, its folder, the space for it. Writes nothing."""
    options = prepared.options
    check_share(options, prepared.train, world.size)
    out, fresh = Path(options.out), options.resume == "never"
    if not fresh:
        check_classes(out, prepared.train.classes)
    check_run_folder(out, identity_of(prepared, frozen, world), fresh=fresh, extend=options.extend)
    require_space(out, disk_of(prepared), fresh=fresh)


def disk_of(prepared: Prepared) -> int:
    """Bytes of the checkpoints and weights of a run: three checkpoints while one is written, of weights, two moments and averaged
    weights; and the weights themselves."""
    return (3 * (4 if prepared.options.ema else 3) + 1) * state_bytes(as_module(prepared.vae))


def within_memory(prepared: Prepared, frozen: FrozenNetworks, world: World, free: int | None) -> Prepared:
    """The run with as many micro-batches as "auto" is; rank 0 prints what it needs. Where no one asks, nothing is counted: a
    CPU can swap.

    Args:
        free: bytes, before the model was built.

    Raises:
        UsageError: its batch cannot be divided, or it does not fit into the memory of its device.
    """
    options, device = prepared.options, world.device
    if kind_of(device).swaps and options.accumulate != AUTO and not options.dry_run:
        return prepared
    check_share(options, prepared.train, world.size)
    cost, budget = budget_of(
        options, prepared.vae, prepared.geometry, frozen.lpips, device, world.size, free, frozen.backbone
    )
    options = options.replace(accumulate=budget.choose(options.accumulate))
    world.say(budget.line(options.accumulate, world.device))
    if options.dry_run and world.main:
        print_cost(options, cost)
        print_whole_run(options, world, flops=cost.flops, disk=disk_of(prepared))
    budget.require(options.accumulate, device, SMALLER)
    return prepared._replace(options=options)


def identity_of(prepared: Prepared, frozen: FrozenNetworks, world: World) -> RunIdentity:
    """What makes another invocation the same run."""
    options = prepared.options
    return RunIdentity(
        options=options.identity(),
        meant={
            "data": prepared.train.identity(),
            "init": file_meaning(options.init),
            "precision": precision_name(autocast_dtype(options.precision, world.device)),
        },
        told=options.told() | {"processes": world.size, "type of device": world.device.type},
        defaults=options.unrecorded(),
        idle=options.idle(),
        following=frozenset(name for name, option in options.fields().items() if option.follows),
        networks=frozen.checksums(),
        command="tokenizer",
    )


def prepare(upstream: Upstream, options: TokenizerOptions, device: torch.device) -> Prepared:
    """Checks the options against each other and the data, and builds the model.

    Raises:
        UsageError: the options do not fit, or the data is missing.
    """
    if options.init:  # published weights have a trained codebook: quantize from the first step
        options = options.replace(warm_autoencoder=0)
    if options.only:
        options = only_alias(options)
    pyramid = make_pyramid(options)
    with named("--data"):
        train, val = images_of(options)
    check_plan(options, pyramid, train)
    gone = check_init(options, Path(options.out), "VQVAE weights such as vae_ch160v4096z32.pth")
    with named("--data"), offering("--small-images upsample", SmallImage):
        note = check_images(train, options.image_size, options.small_images)
        check_images(val, options.image_size, "upsample")
    notes = [*dict.fromkeys(train.notes() + val.notes()), note, *pyramid.rayleigh_warnings()]
    if options.only and pyramid.refocuses:
        notes.append(
            f"with blur {options.blur} the frozen VQVAE's tokens follow focus states, on which published weights were not "
            "trained; with --blur none they are VAR's own, and the alias tokens the same"
        )
    geometry = alias_geometry(options, pyramid)
    torch.manual_seed(stream_seed(options.seed, Stream.WEIGHTS))
    vae = build_vae(upstream, options, pyramid, device)
    return Prepared(options, pyramid, train, val, geometry, vae, [note for note in notes if note], gone)


def images_of(options: TokenizerOptions) -> tuple[ImageSource, ImageSource]:
    """Training and validation images.

    Raises:
        UsageError: there are none; where only validation lacks some, with the options that help.
    """
    try:
        return find_images(options.data, options.val_share)
    except NoValidation as error:
        few = len(find_split(options.data, "train")) < options.batch_size
        ways = "--val-share 0.1 --preset demo, which suits a few pictures" if few else "--val-share 0.05"
        raise UsageError(f"{str(error).removesuffix('.')} ({ways}).") from None


def _run(options: TokenizerOptions, world: World) -> int:
    check_gpu_memory(options)
    free, device = free_memory(world, options.gpu_memory), world.device  # before the model takes its part
    world = planned(world, options.gpu_memory) if options.dry_run else world
    upstream = load_upstream()
    world.say(upstream.describe())
    world.say(why_preset(options))
    prepared = prepare(upstream, options, device)
    for note in prepared.notes:
        world.say(f"note: {note}")
    if world.main:
        print_plan(prepared.options, prepared.pyramid, prepared.vae, prepared.geometry, prepared.train, world.device)
    load = counted_networks if options.dry_run else frozen_networks
    frozen = load(prepared.options, device)
    prepared = within_memory(prepared, frozen, world, free)
    if options.dry_run:
        frozen = frozen_networks(prepared.options, device)  # refuses what the run would refuse
    options, _, train, val, geometry, vae, _, gone = prepared
    check(prepared, frozen, world)
    if options.dry_run:
        return 0
    world.barrier()  # rank 0 changes the folder only after the others have checked it
    run = open_run(prepared, frozen, upstream, world) if world.main else None
    world.barrier()  # the others read the folder only after rank 0 has prepared it
    plan, recipe = RunPlan.of(options, schedule_for(world, Path(options.out)), gone), recipe_of(options)
    data = Crops(train, options.image_size, scale=options.crop_scale, hflip=options.hflip, seed=options.seed)
    training: TokenizerTraining
    if options.only and geometry is not None:
        training = AliasTraining(plan, recipe, world, run, vae, geometry, None, data)
    else:
        training = TokenizerTraining(plan, recipe, world, run, vae, geometry, frozen.lpips, data, frozen.backbone)
    training.memory.checkpointing = None if options.only else not (options.grad_checkpoint or options.compile)
    if run:
        crops = Crops(val, options.image_size, scale=options.crop_scale, random=False)
        batch, held_out = min(32, options.batch_size), val != train
        training.validation = Validation(
            run, options.steps, crops, training.averages, batch, options.val_images, held_out
        )
    with Interruption() as interruption:
        code = training.fit(interruption)
    if code == 0:
        out, teacher = shlex.quote(options.out), "" if options.alias == "on" else " --teacher off"
        world.say(f"\nnext: bash run.sh distill --tokenizer {out}{teacher}\n  or: bash run.sh eval --tokenizer {out}")
    return code


def recipe_of(options: TokenizerOptions) -> TokenizerRecipe:
    """What the options say about training."""
    return TokenizerRecipe(
        lr=options.lr,
        alias_lr=options.alias_lr,
        lr_end=options.lr_end,
        warmup=options.warmup,
        warm_autoencoder=options.warm_autoencoder,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
        clip=options.clip,
        ema=options.ema,
        revive=options.revive,
        lpips=options.lpips,
        structure=structure_weights(options),
        critic=CriticRecipe(
            options.gan,
            options.gan_start,
            options.gan_warmup,
            options.gan_floor,
            options.lecam,
            augment=options.disc_augment == "on",
            bcr=options.bcr,
        ),
        codebook_from_data=not options.init,
        codebook_images=options.codebook_images,
        precision=options.precision,
        channels_last=options.channels_last,
        compile=options.compile,
    )


def frozen_networks(options: TokenizerOptions, device: torch.device) -> FrozenNetworks:
    """The networks of the losses, from their files.

    Raises:
        UsageError: a file is missing, or is another network's.
    """
    return FrozenNetworks(perceptual_loss(options, device), disc_backbone(options, device))


def counted_networks(options: TokenizerOptions, device: torch.device) -> FrozenNetworks:
    """What a dry run counts in the place of the networks: their files may be missing."""
    backbone = None
    if options.gan and options.disc == "dino":
        from refocus_ext.tokenizer.losses.dino import untrained_dino

        backbone = untrained_dino()
    return FrozenNetworks(counted_lpips(options, device), backbone)


def disc_backbone(options: TokenizerOptions, device: torch.device) -> nn.Module | None:
    """The frozen network under the discriminator; None for PatchGAN, or without an adversarial loss."""
    if not options.gan or options.disc == "patch":
        return None
    from refocus_ext.tokenizer.losses.dino import load_dino

    with offering("or train with PatchGAN: --disc patch"):
        return load_dino(options.disc_weights, device)


def perceptual_loss(options: TokenizerOptions, device: torch.device) -> nn.Module | None:
    """LPIPS if its weight is not 0; its weights file is loaded before any work."""
    if not options.lpips:
        return None
    from refocus_ext.tokenizer.losses.perceptual import load_lpips

    with offering("or train without LPIPS: --lpips 0"):
        return load_lpips(options.lpips_weights, device)


def counted_lpips(options: TokenizerOptions, device: torch.device) -> nn.Module | None:
    """What a dry run counts in the place of LPIPS: its weights file may be missing."""
    if not options.lpips:
        return None
    from refocus_ext.tokenizer.losses.perceptual import untrained_lpips

    return untrained_lpips()


def open_run(prepared: Prepared, frozen: FrozenNetworks, upstream: Upstream, world: World) -> RunFolder:
    """The run folder, with its configuration and class map written."""
    options, geometry = prepared.options, prepared.geometry
    config = {
        "options": options.to_dict(),
        "pyramid": prepared.pyramid.to_dict(),
        "alias": geometry.to_dict() if geometry else None,
        "upstream": upstream.describe(),
        "torch": torch.__version__,
    }
    fresh = options.resume == "never"
    run = RunFolder(
        Path(options.out),
        identity_of(prepared, frozen, world),
        config,
        fresh=fresh,
        extend=options.extend,
        log=options.log,
    )
    for note in run.notes:
        print(f"note: {note}")
    if run.moved_to:
        print(f"the run that was in {options.out} is now in {run.moved_to}")
    save_json(run.path / "classes.json", list(prepared.train.classes))
    return run
