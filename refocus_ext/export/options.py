"""Options of `export`, `verify`, `notebook` and `pull`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import positive

WHAT = Heading("what")
HUB = Heading("Hub")
NOTEBOOK = Heading("notebook")


class ExportOptions(Options):
    """
    Writes a student and its VAE as plain upstream files (var_dN.pth, and the VAE named by its geometry as upstream
    names it), with safetensors twins and a model card, and proves with a clean process that they are vanilla VAR.

      bash run.sh export --run runs/distill-d16 --to exports/d16
      bash run.sh export --run runs/distill-d16 --to exports/d16 --push OWNER/NAME --dry-run
    """

    run: str = WHAT(
        "", "a distill run, or any other VAR that `sample --student` takes, training checkpoints too", metavar="RUN"
    )
    vae: str = WHAT("", "the VAE's weights, where they are not beside the VAR's", metavar="FILE")
    to: str = WHAT("", "folder of the files: a new one, an empty one, or that of an earlier export", metavar="DIR")
    no_verify: bool = WHAT(False, "leave out the proof (which `bash run.sh verify DIR` makes); the model card says so")
    push: str = HUB(
        "",
        "also upload to this repository of the Hugging Face Hub, with the token in HF_TOKEN or that of `hf auth login`",
        metavar="OWNER/NAME",
    )
    private: bool = HUB(False, "make the repository private, if --push makes a new one")
    dry_run: bool = HUB(False, "show what would be written and uploaded; write and upload nothing")


class VerifyOptions(Options):
    """
    Proves that files are vanilla VAR: a clean process that imports only upstream loads them strictly, samples two
    images with a fixed seed and decodes tokens, in fp32 on the CPU; the bytes must be those that this project makes of
    the same files. Prints their digest and writes it to verified.json. Exits with 0 if they are equal, 1 if not.
    """

    folder: str = WHAT(
        "",
        "an exported folder, a run, upstream's published files, or a training checkpoint",
        positional=True,
        metavar="DIR",
    )
    vae: str = WHAT("", "the VAE's weights, where they are not beside the VAR's", metavar="FILE")


class NotebookOptions(Options):
    """
    Runs the code cells of upstream's demo_sample.ipynb as they stand on exported files, in a process of its own, and
    keeps the picture they show. The notebook is written for one geometry (V=4096, ch=160, 1000 classes, depth 16); for
    any other the command says which arguments to change. On two CPU cores it takes some minutes.
    """

    weights: str = NOTEBOOK("", "folder with var_d16.pth and its VAE", metavar="DIR")
    depth: int = NOTEBOOK(16, "which var_dN.pth of the folder", positive(int), metavar="N")
    out: str = NOTEBOOK("notebook.png", "the picture", metavar="PNG")
    device: str = NOTEBOOK(
        "auto", "auto: the GPU where there is one, as the notebook chooses; cpu: without it", choices=("auto", "cpu")
    )


class PullOptions(Options):
    """
    Downloads files of `bash run.sh export --push`, or any in upstream's names, from the Hugging Face Hub by way of its
    cache; with HF_HUB_OFFLINE=1 from the cache alone.
    """

    repository: str = WHAT("", "repository of the Hugging Face Hub", positional=True, metavar="OWNER/NAME")
    to: str = WHAT("", "folder of the files", metavar="DIR")
    revision: str = WHAT("", "branch, tag or commit; default: the newest of main", metavar="REVISION")
    depth: int | None = WHAT(None, "only the VAR of this depth, where there are several", positive(int), metavar="N")
