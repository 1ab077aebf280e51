"""The folder of an export: plain upstream files, safetensors twins, geometry and class names; complete or marked unfinished."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.export.builder_arguments import build_arguments, vae_file_name
from refocus_ext.sampling.student import Student
from refocus_ext.sampling.student_files import GEOMETRY_FILE
from refocus_ext.storage.atomic import remove_torn, save_json, save_tensors, sha256, written_beside

CARD, CLASSES, RECORD = "README.md", "classes.json", "verified.json"
WEIGHTS = re.compile(r"(var_d\d+|vae_ch\d+v\d+z\d+)\.(pth|safetensors)")
FACTS = ("preset", "data", "steps", "batch_size", "lr", "seed", "precision", "teacher", "hflip")


def is_ours(name: str) -> bool:
    """Whether an export writes a file of that name."""
    return name in (CARD, CLASSES, RECORD, GEOMETRY_FILE) or bool(WEIGHTS.fullmatch(name))


@dataclass(frozen=True)
class Export:
    """The contents of an export, before it is written.

    `states` are the state dicts by the names of their .pth files; `geometry` is geometry.json without the checksums.
    """

    states: Mapping[str, Mapping[str, Tensor]]
    geometry: dict[str, Any]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, student: Student) -> Export:
        arguments = build_arguments(student)
        states = {
            f"var_d{student.geometry.depth}.pth": student.var.state_dict(),
            vae_file_name(arguments): student.vae.state_dict(),
        }
        var, vae = states
        geometry = {
            "command": "export",
            "var": var,
            "vae": vae,
            "build_vae_var": arguments | {"patch_nums": list(arguments["patch_nums"])},
            "image_size": student.image_size,
            "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in _networks(student)},
            "pyramid": student.pyramid.to_dict() if student.pyramid else None,
            "training": _training(student),
        }
        if trained := student.config.get("trained_classes"):
            geometry["trained_classes"] = trained
        tensors = {name: _plain(state) for name, state in states.items()}
        return cls(tensors, geometry, student.classes)

    @property
    def names(self) -> list[str]:
        """The files of a finished export, except verified.json."""
        twins = [twin_of(name) for name in self.states]
        return [*self.states, *twins, GEOMETRY_FILE, *([CLASSES] if self.classes else []), CARD]

    def size(self, name: str) -> int:
        """Bytes of the tensors in a file; 0 for small files."""
        state = self.states.get(name) or self.states.get(name.replace(".safetensors", ".pth")) or {}
        return sum(tensor.nbytes for tensor in state.values())

    def write(self, folder: Path) -> None:
        """Writes everything but the model card; until then geometry.json marks the folder as unfinished.

        Raises:
            UsageError: the folder holds other files.
            RunFailed: a file cannot be written.
        """
        check_folder(folder, of_export=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_torn(folder)
            self._require_space(folder)
            save_json(folder / GEOMETRY_FILE, self.geometry | {"unfinished": True})
            for name, state in self.states.items():
                save_tensors(folder / name, dict(state))
                with written_beside(folder / twin_of(name)) as beside:
                    save_file(dict(state), beside, metadata=self._metadata())
                    shutil.copymode(folder / name, beside)  # safetensors writes files that only their owner can read
            if self.classes:
                save_json(folder / CLASSES, list(self.classes))
            for path in folder.iterdir():
                if is_ours(path.name) and path.name not in self.names:
                    path.unlink()
            sums = {path.name: sha256(path) for path in sorted(folder.iterdir()) if WEIGHTS.fullmatch(path.name)}
            save_json(folder / GEOMETRY_FILE, self.geometry | {"weights": sums})
        except OSError as error:
            raise RunFailed(f"{folder} could not be written ({error.strerror or error}).") from error

    def _metadata(self) -> dict[str, str]:
        return {"format": "pt", "build_vae_var": json.dumps(self.geometry["build_vae_var"])}

    def _require_space(self, folder: Path) -> None:
        need = sum(self.size(name) for name in self.names)
        if (free := shutil.disk_usage(folder).free) < need:
            raise RunFailed(
                f"{folder} has {free / 2**30:.2f} GiB free, but the files need {need / 2**30:.2f} GiB; free some space "
                "or choose another folder."
            )


def twin_of(name: str) -> str:
    return name.removesuffix(".pth") + ".safetensors"


def check_folder(folder: Path, *, of_export: bool) -> None:
    """Raises UsageError unless the folder is new, empty, or holds files of exports only.

    Args:
        of_export: the folder must hold the geometry.json of an earlier export.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    names = [name for name in names if not name.startswith(".")]  # .git, and files of the Hub's client
    other = [name for name in names if not is_ours(name)]
    if not other and names and of_export and not _is_export(folder):
        other = names
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UsageError(
            f"{folder} holds other files ({', '.join(other[:3])}{more}); choose a new or empty folder, or one "
            "of an earlier export."
        )


def _is_export(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / GEOMETRY_FILE).read_text())["command"] == "export"
    return False


def _networks(student: Student) -> tuple[tuple[str, Any], ...]:
    return ("var", student.var), ("vae", student.vae)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors with their own memory: a view would write its whole storage to the file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in tensors.items()
    }


def _training(student: Student) -> dict[str, Any]:
    """Facts of the run for the model card; empty if it is not a run."""
    config = student.config
    if "training" in config:  # an export, exported again
        return dict(config["training"])
    options = config.get("options", {})
    facts = {name: options[name] for name in FACTS if options.get(name) not in (None, "")}
    if facts.get("data"):
        facts["data"] = Path(facts["data"]).name  # do not publish local paths
    if config and (last := _last_validation(student.files.var.parent)):
        facts["validation"] = last | ({"held_out": config["held_out"]} if "held_out" in config else {})
    return facts


def _last_validation(run: Path) -> dict[str, float]:
    """The student's last record in metrics.jsonl with figures of validation images."""
    with contextlib.suppress(OSError, ValueError):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = [
            {k: v for k, v in record.items() if k in ("step", "val/ce_student", "val/ce_teacher")} for record in records
        ]
        return next((record for record in reversed(found) if len(record) > 1), {})
    return {}
