"""The files of a student: from a run, from an export, or from upstream."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refocus_ext.engine.checkpoints import unfinished
from refocus_ext.errors import UsageError
from refocus_ext.storage.atomic import sha256
from refocus_ext.storage.reading import VAR, VQVAE, find_network, refuse_folder
from refocus_ext.storage.upstream_weights import read_vae

GEOMETRY_FILE = "geometry.json"  # written by `bash run.sh export` beside the weights


@dataclass(frozen=True)
class Files:
    """The paths of a student's parts. `config` is a distill run's config.json or an export's geometry.json, else empty."""

    path: Path
    var: Path
    vae: Path
    config: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ finding the files


def distill_runs(folder: Path = Path("runs")) -> list[Path]:
    """The runs of `distill` in a folder, oldest first."""
    configs = folder.glob("distill-*/config.json")
    return [file.parent for file in sorted(configs, key=lambda file: (file.stat().st_mtime, str(file)))]


def training_left(run: Path, config: Mapping[str, Any]) -> str:
    """'25 of 300 steps' if the training of a distill run was interrupted; otherwise ''."""
    steps = config.get("options", {}).get("steps") if config.get("command") == "distill" else None
    return unfinished(run, steps) if isinstance(steps, int) else ""


def is_unfinished(run: Path) -> bool:
    """Whether a run has no weights yet, or its training was interrupted. What cannot be read is for `find_files` to tell."""
    try:
        config = _read_config(run)
    except UsageError:
        return False
    return not (run / config["student"]["file"]).is_file() or bool(training_left(run, config))


def find_files(source: Path, vae: Path | None = None) -> Files:
    """The files a student is made of; see `load_student`.

    Raises:
        UsageError: one is missing, or several match.
    """
    if source.is_dir():
        config = _read_config(source)
        if config:
            return _run_files(source, config, vae)
        config = _read_export(source)
        var = find_network(source, VAR)
    elif source.is_file():
        var, config = source, {}
        if (source.parent / "config.json").is_file() and (ours := _read_config(source.parent)):
            config = ours if ours["student"]["file"] == source.name else {}
        elif source.name in (export := _read_export(source.parent)).get("weights", {}):
            config = export
    else:
        raise UsageError(
            f"{source} does not exist; a student is the run folder of `bash run.sh distill`, a folder with var_dN.pth and its "
            "VAE, or a var_dN.pth."
        )
    return Files(source, var, vae or _vae_beside(var), config)


def _run_files(run: Path, config: dict[str, Any], vae: Path | None) -> Files:
    var, own = run / config["student"]["file"], run / "vae.pth"
    for path in (var, own) if not vae else (var,):
        refuse_folder(path)
    if not var.is_file():
        raise UsageError(f"{run} has no {var.name} yet: its training is not finished; rerun its command to resume.")
    if not vae and not own.is_file():
        raise UsageError(f"{run} lacks its vae.pth; restore it, or give the file of its VAE.")
    return Files(run, var, vae or own, config)


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of a distill run; empty if the folder has none, or another program's.

    Raises:
        UsageError: it belongs to another command, or is unreadable.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
        if isinstance(config, dict) and config and "command" not in config:
            return {}
        command = config["command"]
        if command == "distill" and isinstance(config["student"]["file"], str):
            return config
    except (OSError, ValueError, KeyError, TypeError):
        command = None
    if command and command != "distill":
        raise UsageError(f"{folder} is a run of `{command}`, which has no student; give one of `bash run.sh distill`.")
    raise UsageError(f"{file} is not the configuration of a distill run; give another run folder.")


def _read_export(folder: Path) -> dict[str, Any]:
    """geometry.json of an export; empty if the folder has none.

    Raises:
        UsageError: the export was interrupted, or the file is unreadable.
    """
    file = folder / GEOMETRY_FILE
    if not file.is_file():
        return {}
    try:
        geometry = json.loads(file.read_text())
        unfinished = geometry["command"] == "export" and geometry.get("unfinished")
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{file} was not written by an export; restore it, or remove it.") from None
    if unfinished:
        raise UsageError(f"the export to {folder} was interrupted; rerun the same command to finish it.")
    return geometry


def _vae_beside(var: Path) -> Path:
    """The VAE's file in the folder of `var`, or `var` itself where it holds both networks."""
    beside = sorted(path for pattern in ("vae*.pth", "vae*.safetensors") for path in var.parent.glob(pattern))
    if not beside:
        with contextlib.suppress(UsageError):
            return read_vae(var).path
        raise UsageError(f"{var.parent} holds no VAE weights (vae*.pth, vae*.safetensors); give the file of its VAE.")
    try:
        return find_network(var.parent, VQVAE)
    except UsageError as error:
        raise UsageError(f"{str(error).replace('give the file itself.', 'give the file of its VAE.')}") from None


# ------------------------------------------------------------------------------------------------ checks


def _check_sums(files: Files, own_vae: bool) -> None:
    """Raises UsageError unless the files have the sha256 that the run or the export recorded."""
    expected: Mapping[str, str] = files.config.get("weights", {})
    for path in (files.var, *([files.vae] if own_vae else [])):
        if path.name in expected and sha256(path) != expected[path.name]:
            raise UsageError(
                f"{path} is not the file that its run wrote (its sha256 differs from the one recorded). If the run is saving now, "
                "try again in a minute; if it was killed, rerun its command, which writes the file again; otherwise restore the "
                "file, or train or export the run again."
            )
