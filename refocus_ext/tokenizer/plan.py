"""The plan of a stage-1 command: checks of options and data, the model, and the printed plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from patches import Focus, Upstream
from patches.protocols import VQVAE, as_module
from patches.vae_init import init_vae_weights
from refocus_ext.engine.checks import check_run_options
from refocus_ext.engine.devices import bf16_note, precision_in_words, slow_fp16_note
from refocus_ext.errors import UsageError, named
from refocus_ext.images.sources.interface import ImageSource, classes_in_words
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options import shared
from refocus_ext.options.presets import preset
from refocus_ext.storage.upstream_weights import phis_of, read_vae, scales_of_vae, vae_geometry, vae_state_dict
from refocus_ext.storage.weights import load_strictly
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.options import TokenizerOptions, most_states
from refocus_ext.tokenizer.recipe import StructureWeights


def why_preset(options: TokenizerOptions) -> str:
    if options.preset == "demo" and not options.data:
        return "preset demo: a small model on the photographs inside scikit-image, because no --data was given"
    return f"preset {options.preset}" + (f": training on {options.data}" if options.data else "")


def make_pyramid(options: TokenizerOptions) -> FocusPyramid:
    """The focus pyramid of the options; its errors become usage errors."""
    try:
        return FocusPyramid(
            image_size=options.image_size,
            states=options.focus_states,
            rho_max=options.rho_max,
            blur=options.blur,
            noise_min=options.noise_min,
            noise_max=options.noise_max,
            views=options.views,
        )
    except ValueError as error:
        raise UsageError(shared.with_options(str(error))) from None


def structure_weights(options: TokenizerOptions) -> StructureWeights:
    """The weights of the structure tokenizer's terms."""
    names = [field.name for field in dataclasses.fields(StructureWeights)]
    return StructureWeights(**{name: getattr(options, name) for name in names})


def check_plan(options: TokenizerOptions, pyramid: FocusPyramid, images: ImageSource) -> None:
    """Raises UsageError where the options do not fit each other or the data."""
    check_maps(options, pyramid)
    if len(options.patch_nums) < 2:
        raise UsageError("--patch-nums needs at least two token maps.")
    if options.ch % 32:
        raise UsageError(f"--ch {options.ch} is not a multiple of 32, the groups of the VQVAE's normalization.")
    if options.val_share and not options.data:
        raise UsageError(
            f"--val-share {options.val_share:g} needs --data DIR; the demo validates on its own photographs."
        )
    check_run_options(options, images)
    if options.warm_autoencoder >= options.steps:
        raise UsageError(
            f"--warm-autoencoder {options.warm_autoencoder} leaves no step of --steps {options.steps} with quantization; lower it."
        )


def check_maps(options: TokenizerOptions, pyramid: FocusPyramid) -> None:
    """Raises UsageError unless the token maps rise to the latent's size. A value that is the preset's is said to be."""
    rise = list(options.patch_nums) == sorted(set(options.patch_nums))
    if rise and options.patch_nums[-1] == pyramid.latent_size:
        return
    maps, size = ",".join(map(str, options.patch_nums)), f"image size / {pyramid.stride} = {pyramid.latent_size}"
    of_preset = preset(options.preset, "tokenizer")
    if options.patch_nums == of_preset["patch_nums"]:
        maps = f"{maps} of preset {options.preset}"
    if options.image_size == of_preset["image_size"]:
        size = f"{size} (preset {options.preset} has {options.image_size} px)"
    other = f" or --image-size {pyramid.stride * options.patch_nums[-1]}" if rise and options.patch_nums[-1] > 0 else ""
    raise UsageError(f"the token maps {maps} must rise and end at {size}; give --patch-nums{other}.")


def only_alias(options: TokenizerOptions) -> TokenizerOptions:
    """The options of a run that trains the alias tokenizer alone: the VQVAE's geometry is that of its file, and what trains
    it is off.

    Raises:
        UsageError: there is no file, or nothing would be trained.
    """
    if not options.init:
        raise UsageError("--only alias needs --init FILE, the VQVAE beside which the alias tokenizer is trained.")
    if options.alias == "off" or options.focus_states < 2:
        missing = "--alias off" if options.alias == "off" else f"--focus-states {options.focus_states}"
        raise UsageError(f"--only alias with {missing} trains nothing; omit one of them.")
    with named("--init"):
        read = read_vae(Path(options.init))
        try:
            theirs = vae_geometry(read.state)
        except (KeyError, IndexError) as error:
            raise UsageError(
                f"{options.init} is not an upstream VQVAE (it lacks {error}); give another file."
            ) from None
        scales = scales_of_vae(read.state)
        if scales not in (None, len(options.patch_nums)):
            raise UsageError(
                f"{options.init} was trained with {scales} token maps, but this run has {len(options.patch_nums)} "
                f"({','.join(map(str, options.patch_nums))}); give the patch_nums that it was trained with "
                "(--patch-nums)."
            )
    return options.replace(
        codebook_size=theirs.vocab_size, latent_channels=theirs.z_channels, ch=theirs.ch, lpips=0.0, gan=0.0
    )


def build_vae(upstream: Upstream, options: TokenizerOptions, pyramid: FocusPyramid, device: torch.device) -> Any:
    """A trainable VQVAE of the options' geometry, patched with the focus pyramid."""
    vae = upstream.build_vae(
        vocab_size=options.codebook_size,
        z_channels=options.latent_channels,
        ch=options.ch,
        patch_nums=options.patch_nums,
        beta=options.commitment,
        dropout=options.dropout,
        test_mode=False,
        device=device,
        share_quant_resi=_phis(options.init),
    )
    init_vae_weights(vae)
    if options.init and Path(options.init).exists():  # a run that has begun may be resumed without it
        load_published(vae, Path(options.init))
    Focus(pyramid, recomputes=options.grad_checkpoint).apply(vae)
    return vae.requires_grad_(False).eval() if options.only else vae.train()


def _phis(init: str) -> int:
    if not init or not Path(init).exists():  # a run that has begun may be resumed without it
        return 4
    with named("--init"):
        return phis_of(vae_state_dict(Path(init)))


def load_published(vae: VQVAE, path: Path) -> None:
    """Loads VQVAE weights strictly, from a plain state dict or from upstream's training checkpoint.

    Raises:
        UsageError: the file holds no VQVAE, or a VQVAE of another geometry.
    """
    try:
        state = vae_state_dict(path)
    except UsageError as error:
        raise UsageError(f"--init {error}") from None
    load_strictly(
        as_module(vae),
        state,
        f"--init {path} does not fit this tokenizer ({{reason}}); the published vae_ch160v4096z32.pth needs --preset vanilla.",
    )


def print_plan(
    options: TokenizerOptions,
    pyramid: FocusPyramid,
    vae: VQVAE,
    alias: AliasGeometry | None,
    images: ImageSource,
    device: torch.device,
) -> None:
    """Prints the plan in a few lines."""
    parameters = sum(p.numel() for p in vae.parameters())
    radii = (f" radius {radius:g} px," if pyramid.refocuses else "" for radius in pyramid.radii)
    states = "; ".join(f"{k + 1}:{radius} maps {_maps(options, pyramid, k)}" for k, radius in enumerate(radii))
    kind = pyramid.blur if pyramid.refocuses else f"blur {pyramid.blur}: every map follows the sharp picture"
    print(f"images: {len(images)} in {classes_in_words(images)}, crops of {options.image_size} px")
    print(
        f"tokenizer: {parameters / 1e6:.1f}M parameters, {options.codebook_size} codes of {options.latent_channels}, "
        f"{sum(pn * pn for pn in options.patch_nums)} tokens per image"
    )
    if options.init:
        print(f"starts from {options.init}")
        for note in read_vae(Path(options.init)).notes if Path(options.init).exists() else ():
            print(f"  {note}")
    if options.only:
        print("  its weights stay as they are; only the alias tokenizer is trained, and the VQVAE's losses are off")
    print(f"focus states ({kind}): {states}")
    usual = preset(options.preset, "tokenizer")["focus_states"]
    if options.only and pyramid.states == most_states(options.image_size) and usual != pyramid.states:
        print(
            f"  {pyramid.states} of the {usual} of preset {options.preset}, the most that {options.image_size} px have room for"
        )
    if alias:
        print(
            f"alias tokenizer: {alias.codes} codes{' shared with the structure tokenizer' * (alias.codebook == 'shared')}"
            f"{f' (of its {options.codebook_size})' * (alias.codebook == 'shared' and alias.codes < options.codebook_size)}, "
            f"{' + '.join(f'{grid}x{grid}' for grid in alias.grids)} = {alias.tokens} tokens per image"
        )
    print(
        f"training: {options.steps} steps of {options.batch_size} images ({options.warm_autoencoder} of them without "
        f"quantization), peak lr {options.alias_lr if options.only else options.lr:g}, "
        f"in {precision_in_words(options.precision, device)} on {device}"
    )
    if about := bf16_note(options.precision, device) or slow_fp16_note(options.precision, device):
        print(f"note: {about}")


def _maps(options: TokenizerOptions, pyramid: FocusPyramid, state: int) -> str:
    own = [
        str(pn) for pn, k in zip(options.patch_nums, pyramid.states_of(options.patch_nums), strict=True) if k == state
    ]
    return ",".join(own) or "none"


def alias_geometry(options: TokenizerOptions, pyramid: FocusPyramid) -> AliasGeometry | None:
    """The alias tokenizer's geometry, None if it is off or the pyramid has no alias state.

    Raises:
        UsageError: a stride that does not fit the alias views.
    """
    if options.alias == "off" or pyramid.states < 2:
        return None
    shared_codes = {"shared": options.codebook_size, "shared-part": options.alias_codes}
    codes = shared_codes.get(options.alias_codebook)
    if codes and options.codebook_size % codes:
        raise UsageError(
            f"--alias-codes {codes} must divide --codebook-size {options.codebook_size}, of which --alias-codebook shared-part "
            "takes evenly spread entries."
        )
    try:
        return AliasGeometry.of(
            pyramid,
            stride=options.alias_stride,
            codes=codes or options.alias_codes,
            code_dim=options.latent_channels if codes else 32,
            width=options.alias_width,
            codebook="shared" if codes else "own",
        )
    except ValueError as error:
        raise UsageError(f"{error} (--alias-stride, or --alias off).") from None
