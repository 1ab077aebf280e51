"""`bash run.sh notebook`: upstream's demo notebook, with its code cells unedited, on exported files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from patches.upstream import SUBMODULE, load_upstream, submodule_present
from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.export.builder_arguments import build_arguments, changes_for_notebook, vae_file_name
from refocus_ext.export.clean_process import without_project
from refocus_ext.export.options import NotebookOptions
from refocus_ext.export.run_cells import code_cells
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.atomic import copy_file
from refocus_ext.storage.upstream_weights import is_plain

SCRIPT = Path(__file__).with_name("run_cells.py")
DEMO = SUBMODULE / "demo_sample.ipynb"


def main(options: NotebookOptions) -> int:
    """Runs the command; returns its exit code."""
    if not submodule_present() or not DEMO.is_file():
        raise RunFailed(
            "the submodule var_upstream, which holds the notebook, is not populated; fetch it with `git submodule update --init` "
            "where GitHub can be reached."
        )
    print(load_upstream("submodule").describe())
    files = notebook_files(options)
    cells = code_cells(str(DEMO))
    print(f"{DEMO.name}: {len(cells)} code cells executed unedited, sha256 {cells_digest(cells)}")
    print("8 images of d16 take a few minutes on a CPU and seconds on a GPU ...", flush=True)
    began = time.monotonic()
    picture = run_notebook(DEMO, files, Path(options.out), options.device)
    print(f"{options.out}: {picture[0]} x {picture[1]} pixels, {time.monotonic() - began:.0f} s")
    return 0


def notebook_files(options: NotebookOptions) -> dict[str, Path]:
    """The files by the names that the notebook expects.

    Raises:
        UsageError: they are missing, or their geometry does not fit the notebook.
    """
    if not options.weights:
        raise UsageError("notebook needs --weights, a folder written by `bash run.sh export`.")
    folder = Path(options.weights)
    one_of_several = folder / f"var_d{options.depth}.pth"
    with named("--weights"):
        student = load_student(one_of_several if one_of_several.is_file() else folder)
    check_geometry(student)
    return names_in_notebook(student)


def check_geometry(student: Student) -> None:
    """Raises UsageError, with what to change in the notebook, unless it is written for this geometry."""
    if changes := changes_for_notebook(build_arguments(student)):
        raise UsageError(
            f"the unedited {DEMO.name} cannot load {student.files.var}; in a copy of it change {', '.join(changes)}."
        )


def names_in_notebook(student: Student) -> dict[str, Path]:
    """The student's files by upstream's names; the notebook calls torch.load on them itself.

    Raises:
        UsageError: a file is not a plain state dict.
    """
    for path in (student.files.var, student.files.vae):
        if not is_plain(path):
            raise UsageError(
                f"{path} is not a plain .pth file, which the notebook needs; `bash run.sh export` writes one."
            )
    names = (f"var_d{student.geometry.depth}.pth", vae_file_name(build_arguments(student)))
    return dict(zip(names, (student.files.var, student.files.vae), strict=True))


def cells_digest(cells: list[str]) -> str:
    """sha256 of the cells' sources, each ended by a zero byte."""
    return hashlib.sha256(b"".join(cell.encode() + b"\0" for cell in cells)).hexdigest()


def run_notebook(notebook: Path, files: Mapping[str, Path], out: Path, device: str = "auto") -> tuple[int, int]:
    """Executes a notebook in a new interpreter whose folder has links to `files`; writes the last picture shown to `out`.

    Returns:
        Width and height of the picture, pixels.

    Raises:
        RunFailed: a cell raises, or no cell shows a picture.
    """
    environment = without_project() | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            Path(folder, name).symlink_to(path.resolve())
        run = subprocess.run(
            [sys.executable, str(SCRIPT), str(notebook.resolve()), str(SUBMODULE)],
            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if run.returncode:
            print(run.stderr, file=sys.stderr, end="")
            raise RunFailed(f"{notebook.name} failed ({(run.stderr.strip().splitlines() or ['no error output'])[-1]}).")
        shown = sorted(Path(folder).glob("shown-*.png"))
        if not shown:
            raise RunFailed(f"{notebook.name} ran but showed no picture.")
        return _keep(shown[-1], out)


def _keep(picture: Path, out: Path) -> tuple[int, int]:
    copy_file(picture, out)
    with Image.open(out) as image:
        return image.size
