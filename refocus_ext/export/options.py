"""Options of `export`, `verify`, `notebook` and `pull`. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses

from refocus_ext.options.parser import option, positive

EXPORT_DESCRIPTION = """
Writes a student and its VAE as plain upstream files (var_dN.pth, and the VAE named by its geometry as upstream names
it), with safetensors twins and a model card, and proves with a clean process that they are vanilla VAR.

  bash run.sh export --run runs/distill-d16 --to exports/d16
  bash run.sh export --run runs/distill-d16 --to exports/d16 --push OWNER/NAME --dry-run
"""
VERIFY_DESCRIPTION = """
Proves that files are vanilla VAR: a clean process that imports only upstream loads them strictly, samples two images
with a fixed seed and decodes tokens, in fp32 on the CPU; the bytes must be those that this project makes of the same
files. Prints their digest and leaves it in verified.json. Exits with 0 if they are equal, 1 if not.
"""
NOTEBOOK_DESCRIPTION = """
Runs the code cells of upstream's demo_sample.ipynb as they stand on exported files, in a process of its own, and keeps
the picture they show. The notebook is written for one geometry (V=4096, ch=160, 1000 classes, depth 16); for any other
the command says which arguments to change. On two CPU cores it takes some minutes.
"""
PULL_DESCRIPTION = """
Brings files of `bash run.sh export --push`, or any in upstream's names, back from the Hugging Face Hub by way of its
cache; with HF_HUB_OFFLINE=1 from the cache alone.
"""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is exported, where to, and whether it goes to the Hub."""

    # fmt: off
    run: str = option("", "distill run; any other VAR that `sample --student` takes, training checkpoints too, will do", metavar="RUN", group="what")
    vae: str = option("", "the VAE's weights, where they are not beside the VAR's", metavar="FILE", group="what")
    to: str = option("", "folder of the files: a new one, an empty one, or that of an earlier export", metavar="DIR", group="what")
    no_verify: bool = option(False, "leave the proof out (as `bash run.sh verify DIR` makes it); the model card says so", group="what")
    push: str = option("", "also upload to this repository of the Hugging Face Hub; the token is HF_TOKEN's, or that of `hf auth login`", metavar="OWNER/NAME", group="Hub")
    private: bool = option(False, "a repository that --push makes is private", group="Hub")
    dry_run: bool = option(False, "show what would be written and uploaded; write and upload nothing", group="Hub")
    # fmt: on


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """What is verified."""

    # fmt: off
    folder: str = option("", "an exported folder, a run, upstream's published files, or a training checkpoint", positional=True, metavar="DIR", group="what")
    vae: str = option("", "the VAE's weights, where they are not beside the VAR's", metavar="FILE", group="what")
    # fmt: on


@dataclasses.dataclass(frozen=True)
class NotebookOptions:
    """On which files the notebook runs, and where its picture goes."""

    # fmt: off
    weights: str = option("", "folder with var_d16.pth and its VAE", metavar="DIR", group="notebook")
    depth: int = option(16, "which var_dN.pth of the folder", kind=positive(int), metavar="N", group="notebook")
    out: str = option("notebook.png", "the picture", metavar="PNG", group="notebook")
    device: str = option("auto", "auto: the GPU where there is one, as the notebook chooses; cpu: without it", choices=("auto", "cpu"), group="notebook")
    # fmt: on


@dataclasses.dataclass(frozen=True)
class PullOptions:
    """What comes back from the Hub, and where to."""

    # fmt: off
    repository: str = option("", "repository of the Hugging Face Hub", positional=True, metavar="OWNER/NAME", group="what")
    to: str = option("", "folder of the files", metavar="DIR", group="what")
    revision: str = option("", "branch, tag or commit; default: the newest of main", metavar="REVISION", group="what")
    depth: int = option(None, "only the VAR of this depth, where there are several", kind=positive(int), metavar="N", group="what")
    # fmt: on
