"""`bash run.sh ablate`: Table 2 at any size. Every row is trained by this project's commands and measured in the same way."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refocus_ext.engine.devices import pick_device
from refocus_ext.engine.interruption import SIGNALS, WARNINGS
from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.evidence.ablation.differences import summarise
from refocus_ext.evidence.ablation.measure import Measure, inception_if_there, measure_run, reader_if_letters
from refocus_ext.evidence.ablation.options import AblateOptions
from refocus_ext.evidence.ablation.report import write_report
from refocus_ext.evidence.ablation.results import OtherBudget, Results, budget_differences, budget_of
from refocus_ext.evidence.ablation.rows import BY_NAME, DISK, TABLE, Stage1
from refocus_ext.options.presets import preset
from refocus_ext.storage.atomic import save_json
from refocus_ext.storage.results import results_file, write_numbers
from refocus_ext.tokenizer.stage_one import StageOne
from refocus_ext.tokens.trained_tokenizer import read_config

ROOT = Path(__file__).resolve().parents[3]


def main(options: AblateOptions) -> int:
    """Runs the command; returns its exit code."""
    if options.demo and options.preset != "demo":
        raise UsageError(f"--demo means --preset demo; omit it to use --preset {options.preset}.")
    check_rows(options)
    with named("--tokenizer-options"):
        budget_of(options)
    with named("--json"):
        json_file = results_file(options.json) if options.json else None
    with named("--known"), offering_their_budget():
        known = Results(options, options.known)
    plan = commands(options, known)
    if options.dry_run:
        for step in plan:
            print("bash run.sh " + shlex.join(step.words))
        return 0
    if options.tokenizer and plan:
        with named("--tokenizer"):
            read_config(Path(options.tokenizer))
    device = pick_device(options.device)
    with offering_their_budget():
        bind(options)
    inception = inception_if_there(options.inception_weights, device)
    reader = reader_if_letters(options.data, device)
    for number, step in enumerate(plan, start=1):
        print(f"\n[{number}/{len(plan)}] bash run.sh {shlex.join(step.words)}", flush=True)
        if code := launch(step.words):
            if code >= 128:  # 128 + a signal: interrupted and saved, or before there was anything to save
                print("stopped; rerun the same command to resume")
                return code
            how = f"ended with exit code {code}; its output is above"
            if code < 0:
                how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", as the system does where memory runs out; rerun the same command to resume"
            raise RunFailed(f"`bash run.sh {shlex.join(step.words)}` {how}.")
        if step.row:
            share = val_share(options, step)
            measure = Measure(inception, options.data, options.images, options.batch_size, device, share, reader)
            known.add(step.row, step.seed, measure_run(measure, folder(options, step.row, step.seed)))
    known.write()
    results = known.of(options.rows, options.seeds)
    summary = {name: summarise(name, results) for name in results}
    runs = {TABLE[name].title: folder(options, name, options.seeds[0]) for name in options.rows}
    write_report(options, TABLE, summary, results, {title: run for title, run in runs.items() if run.is_dir()})
    if json_file:
        with named("--json"):
            write_numbers(json_file, {"rows": summary, "runs": results, "seeds": list(options.seeds)})
    return 0


def check_rows(options: AblateOptions) -> None:
    """Raises UsageError if --tokenizer is given for a row that trains another one."""
    own = [row for row in options.rows if TABLE[row].tokenizer.tokens != DISK.tokens]
    if options.tokenizer and own:
        raise UsageError(
            f"--tokenizer {options.tokenizer} is for rows that differ in the teacher alone, and the row {own[0]} needs tokens of "
            "its own; give such rows, as in --rows teachers, or omit it."
        )


@dataclass(frozen=True)
class Step:
    """A command of the plan; with `row` it trains a student that is measured afterwards."""

    words: list[str]
    seed: int
    row: str = ""


def val_share(options: AblateOptions, step: Step) -> float:
    """The share of the images that the tokenizer of a student held out."""
    run = tokenizer_folder(options, TABLE[step.row].tokenizer, step.seed)
    return StageOne.read(read_config(run)["options"]).val_share


def commands(options: AblateOptions, known: Results) -> list[Step]:
    """The students whose numbers are not known, each after its tokenizer; every run has its own folder and can resume."""
    shared = ["--preset", options.preset] + (["--data", options.data] if options.data else [])
    every = max(1, options.distill_steps // options.points)
    watched = ["--save-every", str(every), "--picture-every", str(every), "--keep", str(options.points + 1)]
    plan: list[Step] = []
    for seed in options.seeds:
        seeded, made = [*shared, "--seed", str(seed)], set[Stage1]()
        for name in trained([row for row in options.rows if not known.has(row, seed)]):
            row = TABLE[name]
            for stage1 in (BY_NAME[row.tokenizer.tokens], row.tokenizer):
                if stage1 not in made and not is_given(options, stage1):
                    plan.append(Step(tokenizer_words(options, stage1, seed, seeded), seed))
                    made.add(stage1)
            words = ["distill", *seeded, "--tokenizer", str(tokenizer_folder(options, row.tokenizer, seed))]
            words += ["--depth", str(options.depth), "--steps", str(options.distill_steps), *watched]
            if is_given(options, row.tokenizer):  # beside the tokenizer lies the cache of one seed
                words += ["--cache", str(Path(options.out) / f"tokens-seed{seed}")]
            if row.source:
                words += ["--teacher-from", str(folder(options, row.source, seed))]
            words += ["--out", str(folder(options, name, seed)), *shlex.split(options.distill_options), *row.teacher]
            plan.append(Step(words, seed, name if name in options.rows else ""))
    return plan


def tokenizer_words(options: AblateOptions, stage1: Stage1, seed: int, seeded: Sequence[str]) -> list[str]:
    """The command that trains a tokenizer. What the row changes stands last: options of all rows do not undo it."""
    out = str(tokenizer_folder(options, stage1, seed))
    words = ["tokenizer", *seeded, "--steps", str(options.tokenizer_steps), "--out", out, *warm_up(options)]
    words += [*shlex.split(options.tokenizer_options), *stage1.options]
    if stage1.structure:
        vae = tokenizer_folder(options, BY_NAME[stage1.structure], seed) / "vae.pth"
        words += ["--only", "alias", "--init", str(vae)]
    return words


def trained(names: Sequence[str]) -> list[str]:
    """The rows to train: those of `names`, each after the row whose teacher it takes."""
    return list(dict.fromkeys(name for wanted in names for name in (TABLE[wanted].source, wanted) if name))


def warm_up(options: AblateOptions) -> list[str]:
    """The preset's own steps of warm-up where they fit, as in the measured tables, and not their share of the steps."""
    stage = preset(options.preset, "tokenizer")
    steps = {name: int(str(stage[name])) for name in ("warm_autoencoder", "warmup")}
    if max(steps.values()) >= options.tokenizer_steps:
        return []
    return ["--warm-autoencoder", str(steps["warm_autoencoder"]), "--warmup", str(steps["warmup"])]


def folder(options: AblateOptions, row: str, seed: int) -> Path:
    """The student's run."""
    return Path(options.out) / f"{row}-seed{seed}"


def is_given(options: AblateOptions, stage1: Stage1) -> bool:
    """Whether --tokenizer takes its place."""
    return bool(options.tokenizer) and stage1 == DISK


def tokenizer_folder(options: AblateOptions, stage1: Stage1, seed: int) -> Path:
    if is_given(options, stage1):
        return Path(options.tokenizer)
    return Path(options.out) / f"tokenizer-{stage1.name}-seed{seed}"


@contextlib.contextmanager
def offering_their_budget() -> Iterator[None]:
    """Appends to the message of an OtherBudget inside the words that make it this call's, where there are some."""
    try:
        yield
    except OtherBudget as error:
        if error.words:
            error.args = (
                f"{str(error).removesuffix('.')}, or go on with theirs: add {error.words} to --tokenizer-options.",
            )
        raise


def bind(options: AblateOptions) -> None:
    """Raises UsageError if --out holds an ablation with another budget."""
    ours = budget_of(options)
    file = Path(options.out) / "ablate.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        if different := list(budget_differences(ours, theirs)):
            name, value, other = different[0]
            message = (
                f"--out {options.out} holds an ablation with {name} = {other}, this one has "
                f"{value}; rows must be compared under one budget; choose another --out."
            )
            raise OtherBudget(message, different)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    save_json(file, ours)


def launch(words: Sequence[str]) -> int:
    """One command in a separate process, by run.sh, which starts several processes on several GPUs."""
    environment = os.environ | {"REFOCUS_PYTHON": os.environ.get("REFOCUS_PYTHON", sys.executable)}
    process = subprocess.Popen(["bash", str(ROOT / "run.sh"), *words], env=environment)
    with forwarded(process):
        while True:
            try:
                code = process.wait()
                return 128 - code if -code in SIGNALS else code  # before it could handle the signal
            except KeyboardInterrupt:  # Ctrl-C reached it too: it saves and exits with 130
                continue


@contextlib.contextmanager
def forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Schedulers signal this process alone, a terminal's Ctrl-C reaches both; afterwards signals end this process again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, *WARNINGS)}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda number, _frame: process.send_signal(number))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
