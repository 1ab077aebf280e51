"""The table of commands, and what runs one of them.

The table names modules without importing them: the list of commands needs the standard library alone, --help
typed-argparse, and only the command that runs imports torch.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from refocus_ext import invocation
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.threads import choose_waiting

if TYPE_CHECKING:
    from typed_argparse import Binding

    from refocus_ext.options.fields import Options
    from refocus_ext.options.parser import Parser


class Command(NamedTuple):
    """One line of the list of commands.

    Attributes:
        summary: what it does, in a clause.
        options: 'module:Class' of its options; its `several_processes` says whether run.sh starts several.
        module: has the `main` that runs it on its options, and may have a `preflight` that raises before any work.
        light: it needs no package but the one that reads options; run.sh installs no other for it.
    """

    summary: str
    options: str
    module: str
    light: bool = False


COMMANDS = {
    "tokenizer": Command(
        "stage 1: train the tokenizer with its focus pyramid",
        "refocus_ext.tokenizer.options:TokenizerOptions",
        "refocus_ext.tokenizer.command",
    ),
    "distill": Command(
        "stage 2: train the teacher and distil it into a vanilla VAR",
        "refocus_ext.distill.options:DistillOptions",
        "refocus_ext.distill.command",
    ),
    "status": Command(
        "list runs: how far they are, what looks wrong, what to type next",
        "refocus_ext.status.options:StatusOptions",
        "refocus_ext.status.command",
        light=True,
    ),
    "tokens": Command(
        "precompute the tokens that distill reads",
        "refocus_ext.tokens.options:TokensOptions",
        "refocus_ext.tokens.command",
    ),
    "sample": Command(
        "draw images from a student: grids, strips, edits, and sets of 50,000 for FID",
        "refocus_ext.sampling.options:SampleOptions",
        "refocus_ext.sampling.command",
    ),
    "eval": Command(
        "FID, sFID, IS, precision, recall of samples; PSNR, SSIM, LPIPS, rFID of a tokenizer",
        "refocus_ext.evaluation.options:EvalOptions",
        "refocus_ext.evaluation.command",
    ),
    "export": Command(
        "student and tokenizer as plain upstream files, for the Hugging Face Hub too",
        "refocus_ext.export.options:ExportOptions",
        "refocus_ext.export.command",
    ),
    "verify": Command(
        "prove that exported files are vanilla VAR",
        "refocus_ext.export.options:VerifyOptions",
        "refocus_ext.export.verify",
    ),
    "notebook": Command(
        "run upstream's demo notebook on exported files",
        "refocus_ext.export.options:NotebookOptions",
        "refocus_ext.export.notebook",
    ),
    "pull": Command(
        "download exported files from the Hugging Face Hub",
        "refocus_ext.export.options:PullOptions",
        "refocus_ext.export.hub",
    ),
    "pyramid": Command(
        "draw focus pyramid, alias residuals and spectra of an image",
        "refocus_ext.evidence.aliasing.options:PyramidOptions",
        "refocus_ext.evidence.aliasing.pyramid_figure",
    ),
    "aliasing": Command(
        "the alias benchmark: filters, tokenizers on shifted images, spectra of samples",
        "refocus_ext.evidence.aliasing.options:AliasingOptions",
        "refocus_ext.evidence.aliasing.command",
    ),
    "legibility": Command(
        "can drawn letters be read: of a student, of a tokenizer, of any samples",
        "refocus_ext.evidence.letters.options:LegibilityOptions",
        "refocus_ext.evidence.letters.command",
    ),
    "web": Command(
        "a page in the browser: sample, take pictures apart, repaint, compare, export",
        "refocus_ext.web.options:WebOptions",
        "refocus_ext.web.command",
    ),
    "ablate": Command(
        "the rows of the paper's Table 2 at any size",
        "refocus_ext.evidence.ablation.options:AblateOptions",
        "refocus_ext.evidence.ablation.command",
    ),
    "bench": Command(
        "speed and memory beside upstream, as ratios in one run",
        "refocus_ext.evidence.bench.options:BenchOptions",
        "refocus_ext.evidence.bench.command",
    ),
}
# What run.sh does itself: their help, and nothing else, comes here.
OF_RUN_SH = {
    "test": (
        "run the test suite, or with --fast a part of it that takes a minute",
        "[--fast | --slow] [pytest's options]",
        "Runs the test suite. --fast runs the part of it that tells within a minute or two whether something is broken;\n"
        "--slow adds the tests at full size. All other words go to pytest.",
    ),
    "completion": (
        "print the lines that make bash complete commands and options",
        "",
        'Prints a bash function. `eval "$(bash run.sh completion)"` in a shell, or in ~/.bashrc with the full path of run.sh,\n'
        "completes commands and options of `bash run.sh` with the Tab key. Needs argcomplete.",
    ),
}

# Words of run.sh before a command's name, and how many words they take up:
#   --known        is there such a command? Needs the standard library alone.
#   --check        are its options right? Prints whether it is worth `several` processes or `one`, or is `light`.
#   --preflight N  refuse in this process what N processes would refuse before their work.
OF_RUN_SH_BEFORE = {"--known": 1, "--check": 1, "--preflight": 2}


def listing() -> str:
    """The list of commands."""
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    summaries |= {name: summary for name, (summary, _, _) in OF_RUN_SH.items()}
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


def command_line() -> Parser:
    """The parser of all commands. Imports typed-argparse and the options, no torch."""
    from refocus_ext.options.parser import Parser

    classes = {name: (_resolve(command.options), command.summary) for name, command in COMMANDS.items()}
    return Parser("bash run.sh", classes)


def _resolve(name: str) -> type[Options]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Done(Exception):
    """A command has ended, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 128 + a signal's number
    interrupted and saved.

    argparse's own way out, for wrong usage and after --help, is SystemExit. Before the command's name there may be one of
    OF_RUN_SH_BEFORE.
    """
    if "_ARGCOMPLETE" in os.environ:  # bash asks how the line in its environment can go on
        command_line().parse_args([])
    mode = argv[0] if argv and argv[0] in OF_RUN_SH_BEFORE else ""
    processes = int(argv[1]) if mode == "--preflight" else 1
    argv = argv[OF_RUN_SH_BEFORE.get(mode, 0) :]
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("help", "--help", "-h"):
        return 0 if mode else _print(listing())
    if argv[0] in OF_RUN_SH:
        return 0 if mode else _print(_help_of_run_sh(argv[0]))
    if argv[0] not in COMMANDS:
        return _unknown(argv[0])
    if mode == "--known":
        return 0
    if not mode and not COMMANDS[argv[0]].light and not {"-h", "--help"}.intersection(argv):
        choose_waiting()  # before torch is imported
    try:
        return _run(argv, mode, processes)
    except _Done as done:
        return done.code


def _print(text: str) -> int:
    print(text)
    return 0


def _help_of_run_sh(name: str) -> str:
    _, usage, text = OF_RUN_SH[name]
    return f"usage: bash run.sh {name} {usage}".rstrip() + f"\n\n{text}"


def _unknown(name: str) -> int:
    close = difflib.get_close_matches(name, [*COMMANDS, *OF_RUN_SH, "help"], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "; `bash run.sh` lists them."
    print(f"refocus: there is no command '{name}'{hint}", file=sys.stderr)
    return 2


def _run(argv: list[str], mode: str, processes: int) -> int:
    """The exit code of a command that exists; its sentence is printed if it ends early."""
    if argv != (argv := invocation.requeued(argv)):
        _say_once(
            "refocus: note: this job was requeued, so --resume is left out: the run goes on from its newest checkpoint"
        )
    invocation.remember(argv)
    try:
        parser = command_line()
        if mode == "--check":
            several = _several(parser.parse_args(argv))
            print("light" if COMMANDS[argv[0]].light else "several" if several else "one")
        elif mode == "--preflight":
            _preflight(COMMANDS[argv[0]], parser.parse_args(argv), processes)
        else:
            parser.bind_lazy(lambda: [_binding(command) for command in COMMANDS.values()]).run(argv)
    except UsageError as error:
        _say_once(f"refocus: {error}")
        return 2
    except RunFailed as error:  # of several processes each may have failed for a reason of its own
        print(f"refocus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrefocus: stopped; the last checkpoint is what remains.", file=sys.stderr)
        return 130
    return 0


def _binding(command: Command) -> Binding:
    """The command's `main`, imported when it is called; raises _Done with its exit code, as the library has no use for it."""
    from typed_argparse import Binding

    def run(options: Options) -> None:
        raise _Done(importlib.import_module(command.module).main(options))

    return Binding(_resolve(command.options), run)


def _preflight(command: Command, options: Options, processes: int) -> None:
    """Raises what the command would raise before its work, as far as its module has a `preflight`."""
    check = getattr(importlib.import_module(command.module), "preflight", None)
    if check is not None:
        check(options, processes)


def _several(options: Options) -> bool:
    """One process per GPU, where that is worth it; but an explicit --device means one, unless NPROC says otherwise."""
    chosen = getattr(options, "device", "auto") != "auto"
    return options.several_processes() and (not chosen or bool(os.environ.get("NPROC")))


def _say_once(sentence: str) -> None:
    """On stderr. Several processes refuse alike: the first of each machine says it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(sentence, file=sys.stderr)
