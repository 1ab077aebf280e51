"""The table of commands, and what runs one of them. Only the command that runs imports torch."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from refocus_ext.distill.options import DISTILL_DESCRIPTION, DISTILL_PRESETS, DistillOptions, choose_distill_preset
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.evaluation.options import EVAL_DESCRIPTION, EvalOptions
from refocus_ext.evidence.ablation.options import (
    ABLATE_DESCRIPTION,
    ABLATE_PRESETS,
    AblateOptions,
    choose_ablate_preset,
)
from refocus_ext.evidence.aliasing.options import (
    ALIASING_DESCRIPTION,
    PYRAMID_DESCRIPTION,
    AliasingOptions,
    PyramidOptions,
)
from refocus_ext.evidence.bench.options import BENCH_DESCRIPTION, BenchOptions
from refocus_ext.export.options import (
    EXPORT_DESCRIPTION,
    NOTEBOOK_DESCRIPTION,
    PULL_DESCRIPTION,
    VERIFY_DESCRIPTION,
    ExportOptions,
    NotebookOptions,
    PullOptions,
    VerifyOptions,
)
from refocus_ext.options import parser
from refocus_ext.sampling.options import SAMPLE_DESCRIPTION, SampleOptions
from refocus_ext.tokenizer.options import PRESETS, TOKENIZER_DESCRIPTION, TokenizerOptions, choose_preset
from refocus_ext.tokens.options import TOKENS_DESCRIPTION, TokensOptions


@dataclass(frozen=True)
class Command:
    """One line of the list of commands; `module` has the `main` that runs it on its options."""

    summary: str
    module: str
    options: type
    presets: Mapping[str, Mapping[str, Any]] | None = None
    description: str = ""
    choose_preset: Callable[[dict[str, Any]], str] = choose_preset


COMMANDS = {
    "tokenizer": Command(
        "stage 1: train the tokenizer with its focus pyramid",
        "refocus_ext.tokenizer.command",
        TokenizerOptions,
        PRESETS,
        TOKENIZER_DESCRIPTION,
    ),
    "distill": Command(
        "stage 2: train the teacher and distil it into a vanilla VAR",
        "refocus_ext.distill.command",
        DistillOptions,
        DISTILL_PRESETS,
        DISTILL_DESCRIPTION,
        choose_distill_preset,
    ),
    "tokens": Command(
        "precompute the tokens that distill reads",
        "refocus_ext.tokens.command",
        TokensOptions,
        description=TOKENS_DESCRIPTION,
    ),
    "sample": Command(
        "draw images from a student: grids, strips, edits, and sets of 50,000 for FID",
        "refocus_ext.sampling.command",
        SampleOptions,
        description=SAMPLE_DESCRIPTION,
    ),
    "eval": Command(
        "FID, sFID, IS, precision, recall of samples; PSNR, SSIM, LPIPS, rFID of a tokenizer",
        "refocus_ext.evaluation.command",
        EvalOptions,
        description=EVAL_DESCRIPTION,
    ),
    "export": Command(
        "student and tokenizer as plain upstream files, for the Hugging Face Hub too",
        "refocus_ext.export.command",
        ExportOptions,
        description=EXPORT_DESCRIPTION,
    ),
    "verify": Command(
        "prove that exported files are vanilla VAR",
        "refocus_ext.export.verify",
        VerifyOptions,
        description=VERIFY_DESCRIPTION,
    ),
    "notebook": Command(
        "run upstream's demo notebook on exported files",
        "refocus_ext.export.notebook",
        NotebookOptions,
        description=NOTEBOOK_DESCRIPTION,
    ),
    "pull": Command(
        "bring exported files back from the Hugging Face Hub",
        "refocus_ext.export.hub",
        PullOptions,
        description=PULL_DESCRIPTION,
    ),
    "pyramid": Command(
        "draw focus pyramid, alias residuals and spectra of an image",
        "refocus_ext.evidence.aliasing.pyramid_figure",
        PyramidOptions,
        description=PYRAMID_DESCRIPTION,
    ),
    "aliasing": Command(
        "the alias benchmark: filters, tokenizers on shifted images, spectra of samples",
        "refocus_ext.evidence.aliasing.command",
        AliasingOptions,
        description=ALIASING_DESCRIPTION,
    ),
    "ablate": Command(
        "the rows of the paper's Table 2 at any size",
        "refocus_ext.evidence.ablation.command",
        AblateOptions,
        ABLATE_PRESETS,
        ABLATE_DESCRIPTION,
        choose_ablate_preset,
    ),
    "bench": Command(
        "speed and memory beside upstream, as ratios in one run",
        "refocus_ext.evidence.bench.command",
        BenchOptions,
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
    parsed: Any = parser.parse(
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
