"""Loads a finished stage-1 run, which every later command starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patches import Focus, load_upstream
from patches.protocols import FocusedVQVAE
from refocus_ext.engine.checkpoints import unfinished
from refocus_ext.errors import UsageError
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage.atomic import copy_file, save_tensors, sha256
from refocus_ext.storage.upstream_weights import phis_of
from refocus_ext.storage.weights import load_strictly, read_state_dict, refuse_folder
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer, build_alias
from refocus_ext.tokenizer.stage_one import StageOne


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a run, with the pyramid it was trained with.

    `vae` is a VQVAE patched with `patches.Focus`, `alias` the alias tokenizer or None where the run trained none; both
    are frozen and in eval mode. `config` is the run's config.json, `trained_with` its training options. A `bare` tokenizer
    comes from a file of weights (`path`) and no run (`bare_tokenizer.py`); `notes` are clauses on what its file holds.
    """

    vae: FocusedVQVAE
    alias: AliasTokenizer | None
    pyramid: FocusPyramid
    config: dict[str, Any]
    trained_with: StageOne
    path: Path
    notes: tuple[str, ...] = ()
    bare: bool = False

    def data(self, given: str) -> str:
        """The data to use: what is `given`, else what the run was trained on ("" for the demo photographs).

        Raises:
            UsageError: nothing is given, and a bare file does not say what it was trained on.
        """
        if self.bare and not given:
            raise UsageError(f"the file {self.path} does not say what it was trained on; give a folder of images.")
        return given or self.trained_with.data

    def small_images(self, given: str) -> str:
        """What becomes of images smaller than the crop: what is `given`, else as when the tokenizer was trained."""
        return given or self.trained_with.small_images

    def write_vae(self, path: Path) -> None:
        """Writes the VQVAE as a plain upstream state dict; the file of a run is copied as it is."""
        if self.bare:
            save_tensors(path, self.vae.state_dict())
        else:
            copy_file(self.path / "vae.pth", path)

    def checksums(self) -> dict[str, str]:
        """sha256 of each weights file, as recorded by the run, or else of the current file."""
        names = ["vae.pth"] + (["alias.pth"] if self.alias is not None else [])
        known = self.config.get("weights", {})
        return {name: known.get(name) or sha256(self.path / name) for name in names}


def load_tokenizer(run: Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer in a run folder of `bash run.sh tokenizer`.

    Raises:
        UsageError: the run does not exist, has no weights yet, or its weights do not match its configuration.
    """
    config = read_config(run)
    weights = run / "vae.pth"
    refuse_folder(weights)
    if not weights.is_file():
        raise UsageError(f"{run} has no vae.pth yet: its training is not finished; rerun its command to resume.")
    check_weights(run, config, weights.name)
    state = read_state_dict(weights, "copy the file again, or train the run again")
    pyramid, vae, trained_with = _build(run, config, phis_of(state), device)
    load_strictly(vae, state, f"{weights} does not fit the geometry in {run / 'config.json'} ({{reason}}).")
    Focus(pyramid).apply(vae)
    vae.requires_grad_(False).eval()
    return Tokenizer(vae, _load_alias(run, config, vae, device), pyramid, config, trained_with, run)


def training_left(tokenizer: Tokenizer) -> str:
    """A sentence if the newest checkpoint shows that training was interrupted; otherwise ''."""
    if tokenizer.bare:
        return ""
    done = unfinished(tokenizer.path, tokenizer.trained_with.steps)
    if not done:
        return ""
    return f"training of {tokenizer.path} is not finished: these are its weights after {done}; rerun its command to resume."


def require_trained(tokenizer: Tokenizer) -> None:
    """What is made from its tokens is worth nothing once its training goes on.

    Raises:
        UsageError: its training was interrupted.
    """
    if left := training_left(tokenizer):
        raise UsageError(left)


def _load_alias(
    run: Path, config: dict[str, Any], vae: FocusedVQVAE, device: torch.device | str
) -> AliasTokenizer | None:
    """The alias tokenizer that the configuration describes."""
    if not config.get("alias"):
        return None
    weights = run / "alias.pth"
    refuse_folder(weights)
    if not weights.is_file():
        raise UsageError(
            f"{run} trained an alias tokenizer but its alias.pth is missing; restore it, or train the run again."
        )
    check_weights(run, config, weights.name)
    state = read_state_dict(weights, "copy the file again, or train the run again")
    try:
        alias = build_alias(AliasGeometry.from_dict(config["alias"]), vae, device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{run / 'config.json'} describes an alias tokenizer that cannot be built ({error})."
        ) from None
    load_strictly(alias, state, f"{weights} does not fit the geometry in {run / 'config.json'} ({{reason}}).")
    return alias.requires_grad_(False).eval()


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a tokenizer's run folder.

    Raises:
        UsageError: no such folder, no configuration, or the configuration of another command.
    """
    if not run.is_dir():
        raise UsageError(
            f"{run} {'is not a folder' if run.exists() else 'does not exist'}; a tokenizer is the run folder of `bash run.sh "
            "tokenizer`, which comes first, or a file of VQVAE weights such as vae_ch160v4096z32.pth."
        )
    file = run / "config.json"
    if not file.is_file():
        raise UsageError(f"{run} has no config.json; a tokenizer is the run folder of `bash run.sh tokenizer`.")
    try:
        config = json.loads(file.read_text())
        ours = config["command"] == "tokenizer" and isinstance(config["options"], dict) and "pyramid" in config
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(f"{file} is not the configuration of a tokenizer run; give another run folder.")
    return config


def check_weights(run: Path, config: dict[str, Any], name: str) -> None:
    """Raises UsageError unless the file `name` has the sha256 recorded in the configuration (if there is one)."""
    expected = config.get("weights", {}).get(name)
    if expected and sha256(run / name) != expected:
        raise UsageError(
            f"{run / name} is not the file that this run wrote (its sha256 differs from config.json's), so the weights are "
            "not the ones its pyramid was trained with. If the run is saving now, try again in a minute; if it was killed, rerun "
            "its command, which writes the file again; otherwise restore the file, or train the run again."
        )


def _build(
    run: Path, config: dict[str, Any], phis: int, device: torch.device | str
) -> tuple[FocusPyramid, Any, StageOne]:
    """The pyramid, an unpatched VQVAE of the configured geometry, and how it was trained."""
    try:
        trained_with = StageOne.read(config["options"])
        pyramid = FocusPyramid.from_dict(config["pyramid"])
        vae = load_upstream().build_vae(
            vocab_size=trained_with.codebook_size,
            z_channels=trained_with.latent_channels,
            ch=trained_with.ch,
            patch_nums=trained_with.patch_nums,
            beta=trained_with.commitment,
            share_quant_resi=phis,
            device=device,
        )
        pyramid.states_of(trained_with.patch_nums)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{run / 'config.json'} describes a tokenizer that cannot be built ({error!r}).") from None
    return pyramid, vae, trained_with
