"""`bash run.sh COMMAND`: picks the command. Only the command that runs imports torch."""

from __future__ import annotations

import atexit
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from refocus_ext import (
    config,
    config_ablate,
    config_distill,
    config_export,
    config_optics,
    config_sampling,
    config_tokens,
    options,
)
from refocus_ext.errors import RunFailed, UsageError


@dataclass(frozen=True)
class Command:
    """One line of the list of commands; `module` has the `main` that runs it on its options."""

    summary: str
    module: str
    options: type
    presets: Mapping[str, Mapping[str, Any]] | None = None
    description: str = ""
    choose_preset: Callable[[dict[str, Any]], str] = config.choose_preset


TOKENIZER_DESCRIPTION = """
Trains the tokenizer of stage 1: VAR's VQVAE, whose coarse token maps follow defocused views of the image
instead of downsampled ones. Without --data it trains a small one on the photographs inside scikit-image,
in minutes on two CPU cores. Typed again, the same command continues an interrupted run.
"""

DISTILL_DESCRIPTION = """
Trains the student of stage 2, a vanilla VAR on focus tokens, together with its teacher: the same weights plus
alias-gate cross-attention, which looks at the alias tokens and hands on what it learns from them. Needs a finished
`bash run.sh tokenizer`. Typed again, the same command continues an interrupted run.
"""

BENCH_DESCRIPTION = """
Times the focus pyramid and tokenization, a step of distillation and sampling beside upstream's own, in one process,
and prints the ratios. At its defaults, those of the paper and d16, it takes some ten minutes on two CPU cores.
"""

EVAL_DESCRIPTION = """
With --samples: FID, sFID, Inception Score, precision and recall as ADM's evaluator defines them, beside the paper's
numbers. Needs Inception's weights as a local file.

  bash run.sh eval --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz

Without: measures a finished tokenizer on validation images: PSNR, SSIM and LPIPS of each focus state's prefix, rFID,
use of the codebook per token scale, explained variance of the alias tokens. LPIPS and rFID need the weights of
their networks as local files; what cannot be measured is listed with the reason.
"""

TOKENS_DESCRIPTION = """
Writes the structure and alias tokens of the training images once, so that distill need not run the encoders again:
fixed random crops, mirrored too with --hflip, two bytes a token. Typed again, the same command continues an
interrupted cache, or checks a finished one and remakes what is damaged.
"""

SAMPLE_DESCRIPTION = """
Draws images from a student, or from any VAR in upstream's files. Without more it is a grid, samples.png. In fp32 on
a CPU an image alone in its batch is upstream's to the bit for its seed; --rng batch is, for the whole batch.

  bash run.sh sample --classes 207,"golden retriever" --count 8 --out dogs.png
  bash run.sh sample --npz samples.npz                 50 images a class, for `eval` or ADM's evaluator
  bash run.sh sample --steps-strip steps.png           from blurred to sharp
  bash run.sh sample --edit cat.jpg --mask 0.25,0.25,0.75,0.75 --classes 281
"""

ABLATE_DESCRIPTION = """
Trains the rows of Table 2 (plain VAR, all of it, and all of it without one part) under one budget, measures them alike
and writes a report with the paper's numbers beside. Typed again, the same command goes on where it stopped.
"""

PYRAMID_DESCRIPTION = """
Draws figure 2 of the paper for any picture: plain decimation D_k, the focused view L_k, the alias residual A_k and the
focus state F_k of every state, with radii and scales, each above its spectrum.
"""

ALIASING_DESCRIPTION = """
Measures on test charts what defocus, Gaussian, sinc, box and bicubic filters let alias and what they cost in detail
(seconds on one CPU core). --data adds photographs, --tokenizer how trained tokenizers take shifts of less than a
latent cell, --samples how the energy spectrum of generated images follows that of --reference. Nothing is random.
"""

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

COMMANDS = {
    "tokenizer": Command(
        "stage 1: train the tokenizer with its focus pyramid",
        "refocus_ext.train_tokenizer",
        config.TokenizerOptions,
        config.PRESETS,
        TOKENIZER_DESCRIPTION,
    ),
    "distill": Command(
        "stage 2: train the teacher and distil it into a vanilla VAR",
        "refocus_ext.train_distill",
        config_distill.DistillOptions,
        config_distill.DISTILL_PRESETS,
        DISTILL_DESCRIPTION,
        config_distill.choose_distill_preset,
    ),
    "tokens": Command(
        "precompute the tokens that distill reads",
        "refocus_ext.make_tokens",
        config_tokens.TokensOptions,
        description=TOKENS_DESCRIPTION,
    ),
    "sample": Command(
        "draw images from a student: grids, strips, edits, and sets of 50,000 for FID",
        "refocus_ext.sample",
        config_sampling.SampleOptions,
        description=SAMPLE_DESCRIPTION,
    ),
    "eval": Command(
        "FID, sFID, IS, precision, recall of samples; PSNR, SSIM, LPIPS, rFID of a tokenizer",
        "refocus_ext.evaluate",
        config.EvalOptions,
        description=EVAL_DESCRIPTION,
    ),
    "export": Command(
        "student and tokenizer as plain upstream files, for the Hugging Face Hub too",
        "refocus_ext.export",
        config_export.ExportOptions,
        description=EXPORT_DESCRIPTION,
    ),
    "verify": Command(
        "prove that exported files are vanilla VAR",
        "refocus_ext.verify",
        config_export.VerifyOptions,
        description=VERIFY_DESCRIPTION,
    ),
    "notebook": Command(
        "run upstream's demo notebook on exported files",
        "refocus_ext.notebook",
        config_export.NotebookOptions,
        description=NOTEBOOK_DESCRIPTION,
    ),
    "pull": Command(
        "bring exported files back from the Hugging Face Hub",
        "refocus_ext.hub",
        config_export.PullOptions,
        description=PULL_DESCRIPTION,
    ),
    "pyramid": Command(
        "draw focus pyramid, alias residuals and spectra of an image",
        "refocus_ext.draw_pyramid",
        config_optics.PyramidOptions,
        description=PYRAMID_DESCRIPTION,
    ),
    "aliasing": Command(
        "the alias benchmark: filters, tokenizers on shifted images, spectra of samples",
        "refocus_ext.aliasing",
        config_optics.AliasingOptions,
        description=ALIASING_DESCRIPTION,
    ),
    "ablate": Command(
        "the rows of the paper's Table 2 at any size",
        "refocus_ext.ablate",
        config_ablate.AblateOptions,
        config_ablate.ABLATE_PRESETS,
        ABLATE_DESCRIPTION,
        config_ablate.choose_ablate_preset,
    ),
    "bench": Command(
        "speed and memory beside upstream, as ratios in one run",
        "refocus_ext.bench",
        config.BenchOptions,
        description=BENCH_DESCRIPTION,
    ),
}
TEST_SUMMARY = "run the test suite (further words go to pytest; --slow adds the long ones)"


def listing() -> str:
    """The list of commands."""
    summaries = {name: command.summary for name, command in COMMANDS.items()} | {"test": TEST_SUMMARY}
    lines = [
        "ReFocus-VAR: next-focus prediction for visual autoregressive models",
        "",
        "usage: bash run.sh COMMAND [options]",
        "",
    ]
    lines += [f"  {name:<11}{summary}" for name, summary in summaries.items()]
    lines += [
        "",
        "`bash run.sh COMMAND --help` lists a command's options. First: `bash run.sh tokenizer`, then `distill`.",
    ]
    return "\n".join(lines)


def _unknown(name: str) -> int:
    close = difflib.get_close_matches(name, [*COMMANDS, "test", "help"], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "; `bash run.sh` lists them."
    print(f"refocus: there is no command '{name}'{hint}", file=sys.stderr)
    return 2


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130/143 interrupted and saved."""
    check_only = argv[:1] == ["--check"]  # run.sh asks before it installs anything
    argv = argv[1:] if check_only else argv
    if not argv or argv[0] in ("help", "--help", "-h"):
        if len(argv) > 1 and argv[0] == "help":
            return main([argv[1], "--help"])
        print(listing())
        return 0
    name, rest = argv[0], argv[1:]
    if name == "test":  # run.sh runs pytest itself; only the help comes here
        if check_only:
            return 0
        print(f"usage: bash run.sh test [--slow] [pytest's options]\n\n{TEST_SUMMARY}")
        return 0
    if name not in COMMANDS:
        return _unknown(name)
    command = COMMANDS[name]
    parsed: Any = options.parse(
        command.options,
        rest,
        prog=f"bash run.sh {name}",
        description=command.description,
        presets=command.presets,
        choose_preset=command.choose_preset,
    )
    return 0 if check_only else _run(command.module, parsed)


def _run(module: str, parsed: Any) -> int:
    # Two OpenMP threads that spin while another program holds a core can slow a step by a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from patches.upstream import UpstreamError

    try:
        return importlib.import_module(module).main(parsed)
    except UsageError as error:
        print(f"refocus: {error}", file=sys.stderr)
        return 2
    except (RunFailed, UpstreamError) as error:
        print(f"refocus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrefocus: stopped; the last checkpoint is what remains.", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """Ends the process with this code.

    One of several processes leaves after its exit handlers, without the interpreter's teardown: there, after all work is
    done, one of PyTorch's threads (gloo, FSDP2) sometimes aborts, and torchrun would call a finished run failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    leave(code)
