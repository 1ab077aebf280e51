"""Loads a student and its VAE: from a distill run, from published or exported files, or from a training checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patches import Focus, load_upstream, patched
from patches.protocols import VAR, VQVAE, device_of
from refocus_ext.counting import counted
from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import choose_class_names, labels_of, name_of
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.sampling.student_files import Files, _check_sums, find_files, training_left
from refocus_ext.storage.atomic import sha256
from refocus_ext.storage.upstream_weights import (
    VARGeometry,
    read_vae,
    read_var,
    vae_geometry,
    var_geometry,
)
from refocus_ext.storage.weights import load_strictly

STRIDE = 16  # pixels per latent cell


@dataclass(frozen=True)
class Student:
    """A vanilla VAR with its VAE, both frozen, in eval mode and unpatched.

    `classes` are names by label, fewer than `num_classes` if some have no name. `pyramid` is the one the VAE was
    trained with; None if the files do not record it, or the VAE is another, and it then encodes as in upstream.
    """

    var: VAR
    vae: VQVAE
    geometry: VARGeometry
    classes: tuple[str, ...]
    pyramid: FocusPyramid | None
    files: Files
    notes: tuple[str, ...] = ()  # on the reading of its files

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def config(self) -> dict[str, Any]:
        """The distill run's configuration or the export's geometry, or empty."""
        return self.files.config

    @property
    def is_demo(self) -> bool:
        """Whether its run was one of preset demo; an export says so too."""
        options = self.config.get("options") or self.config.get("training") or {}
        return bool(options.get("preset") == "demo")

    @property
    def num_classes(self) -> int:
        return self.geometry.num_classes

    @property
    def image_size(self) -> int:
        """Pixels."""
        return STRIDE * self.geometry.patch_nums[-1]

    @property
    def device(self) -> torch.device:
        return device_of(self.var)

    @property
    def trained_classes(self) -> list[int]:
        """The classes it was trained on: those that its run recorded where these are not all, or those with names, or all."""
        return list(self.config.get("trained_classes") or range(len(self.classes) or self.num_classes))

    def labels(self, words: str) -> list[int]:
        """Labels of classes by number or name: '207,golden retriever'; 'none' is the label for no class.

        Raises:
            UsageError: there is no such class.
        """
        return labels_of(words, self.classes, self.num_classes)

    def class_name(self, label: int) -> str:
        return name_of(label, self.classes, self.num_classes)

    @contextlib.contextmanager
    def encoding(self) -> Iterator[Any]:
        """Inside, the VAE encodes as in its training: patched with the run's focus pyramid, if it has one."""
        with patched(self.vae, Focus(self.pyramid)) if self.pyramid else contextlib.nullcontext():
            yield self.vae

    @torch.no_grad()
    def tokens(self, x_B3HW: Tensor) -> list[Tensor]:
        """Token maps of images in [-1,1]: one (B, pn*pn) int64 for each scale; in fp32, whatever autocast is on."""
        with self.encoding() as vae, torch.autocast(x_B3HW.device.type, enabled=False):
            return vae.img_to_idxBl(x_B3HW)

    def describe(self) -> str:
        """One line for the user."""
        parameters = sum(p.numel() for p in self.var.parameters())
        shape = self.geometry
        return (
            f"student: {self.files.var}, depth {shape.depth}, {parameters / 1e6:.1f}M parameters, "
            f"{counted(shape.num_classes, 'class', 'classes')}, {self.image_size} px, {shape.vocab_size} codes"
        )


def load_student(
    source: Path | str,
    device: torch.device | str = "cpu",
    *,
    vae: Path | str | None = None,
    class_names: Path | str | None = None,
) -> Student:
    """Loads a student strictly, on the available upstream.

    Args:
        source: the run folder of `bash run.sh distill`; or a folder of upstream files (`var_d16.pth` and
            `vae_ch160v4096z32.pth`), exported or published; or one file of VAR weights with its VAE beside it or in it;
            in every layout of `storage.reading`.
        vae: the VAE's file or its folder, if it is elsewhere.
        class_names: a JSON list or a text file of names by label, instead of the student's own.

    Raises:
        UsageError: something is missing, damaged, or of another geometry.
    """
    files = find_files(Path(source), Path(vae) if vae else None)
    _check_sums(files, own_vae=vae is None)
    var_read, vae_read = read_var(files.var), read_vae(files.vae)
    files = dataclasses.replace(files, vae=vae_read.path)
    var_state, vae_state = var_read.state, vae_read.state
    shape = _geometry(files, var_state, vae_state)
    names = Path(class_names) if class_names else None
    classes = choose_class_names(names, files.var.parent / "classes.json", shape.num_classes)
    pyramid = _pyramid(files, shape)
    notes = [f"{read.path}: {note}" for read in (var_read, vae_read) for note in read.notes]
    if vae is not None and pyramid and sha256(files.vae) not in files.config.get("weights", {}).values():
        if pyramid.refocuses:
            notes.append(f"{files.vae} is not the VAE of its run: images are encoded without the run's focus pyramid")
        pyramid = None
    vae_net = _build_vae(files.vae, vae_state, shape.patch_nums, device)
    var = load_upstream().build_var(
        vae_net,
        depth=shape.depth,
        num_classes=shape.num_classes,
        shared_aln=shape.shared_aln,
        attn_l2_norm=shape.attn_l2_norm,
        embed_dim=shape.embed_dim,
        num_heads=shape.num_heads,
        device=device,
    )
    load_strictly(var, var_state, f"{files.var} is not an upstream VAR ({{reason}}).")
    if done := training_left(files.var.parent, files.config):
        notes.append(f"its training is not finished: these are its weights after {done}")
    return Student(var.requires_grad_(False).eval(), vae_net, shape, classes, pyramid, files, tuple(notes))


def _build_vae(path: Path, state: dict[str, Tensor], patch_nums: Sequence[int], device: torch.device | str) -> Any:
    try:
        geometry = vae_geometry(state)
    except (KeyError, IndexError) as error:
        raise UsageError(f"{path} is not an upstream VQVAE (it lacks {error}).") from None
    vae = load_upstream().build_vae(
        vocab_size=geometry.vocab_size,
        z_channels=geometry.z_channels,
        ch=geometry.ch,
        patch_nums=tuple(patch_nums),
        share_quant_resi=geometry.share_quant_resi,
        device=device,
    )
    load_strictly(vae, state, f"{path} is not an upstream VQVAE ({{reason}}).")
    return vae.requires_grad_(False).eval()


def _geometry(files: Files, var: dict[str, Tensor], vae: dict[str, Tensor]) -> VARGeometry:
    """The VAR's geometry.

    Raises:
        UsageError: the tensors are not those of a VAR, or the VAE is not the one it was trained on.
    """
    try:
        shape, codes = var_geometry(var), vae_geometry(vae)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"{files.var} and {files.vae} are not an upstream VAR and VQVAE ({error}).") from None
    if (shape.vocab_size, shape.z_channels) != (codes.vocab_size, codes.z_channels):
        raise UsageError(
            f"{files.var} predicts {shape.vocab_size} codes of {shape.z_channels} channels, but {files.vae} has "
            f"{codes.vocab_size} of {codes.z_channels}; give the file of the VAE it was trained on."
        )
    return shape


def _pyramid(files: Files, shape: VARGeometry) -> FocusPyramid | None:
    """The pyramid of a distill run, or of its export."""
    if not files.config.get("pyramid"):
        return None
    try:
        pyramid = FocusPyramid.from_dict(files.config["pyramid"])
        pyramid.states_of(shape.patch_nums)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{files.path}: its configuration describes no pyramid that fits the student ({error})."
        ) from None
    return pyramid
