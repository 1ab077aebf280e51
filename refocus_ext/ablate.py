"""`bash run.sh ablate`: Table 2 at any size. Every row is trained by this project's own commands, then measured alike."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refocus_ext.ablate_measure import Measure, measure_run
from refocus_ext.ablate_report import write_report
from refocus_ext.config_ablate import AblateOptions
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.files import save_json
from refocus_ext.loop import pick_device

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """A row of Table 2: what its two commands are given beyond what all rows share, and the paper's FID and IS at d16.

    Rows that need the same tokenizer share it.
    """

    title: str
    tokenizer: str
    teacher: tuple[str, ...]
    fid: float
    inception_score: float


TOKENIZERS: dict[str, tuple[str, ...]] = {
    "disk": (),
    "none": ("--blur", "none"),
    "gaussian": ("--blur", "gaussian"),
    "shared": ("--alias-codebook", "shared"),
}
TABLE: dict[str, Row] = {
    # The structure tokens of "none" are plain VAR's, whether or not an alias tokenizer is trained beside them.
    "baseline": Row("VAR (baseline)", "none", ("--teacher", "off"), 3.55, 280.4),
    "full": Row("ReFocus-VAR (full)", "disk", (), 2.89, 298.1),
    "no-refocusing": Row("without refocusing", "none", (), 3.51, 282.1),
    "gaussian": Row("Gaussian blur", "gaussian", (), 3.32, 286.7),
    "no-teacher": Row("without the teacher", "disk", ("--teacher", "off"), 3.06, 294.8),
    "shared-codebook": Row("shared codebook", "shared", (), 3.14, 292.1),
}


def main(options: AblateOptions) -> int:
    """Runs the command; returns its exit code."""
    if options.demo and options.preset != "demo":
        raise UsageError(f"--demo is the preset demo; leave it out for --preset {options.preset}.")
    plan = commands(options)
    if options.dry_run:
        for words in plan:
            print("bash run.sh " + shlex.join(words))
        return 0
    device = pick_device(options.device)
    bind(options)
    for number, words in enumerate(plan, start=1):
        print(f"\n[{number}/{len(plan)}] bash run.sh {shlex.join(words)}", flush=True)
        if code := launch(words):
            if code in (130, 143):
                print("stopped; the same `ablate` goes on from here")
                return code
            raise RunFailed(f"`bash run.sh {shlex.join(words)}` ended with exit code {code}; its words are above.")
    print("\nmeasuring", flush=True)
    measure = Measure.of(options, device)
    results = {
        name: [measure_run(measure, folder(options, name, seed)) for seed in options.seeds] for name in options.rows
    }
    summary = {name: summarise(name, results) for name in results}
    write_report(options, TABLE, summary, results, [folder(options, name, options.seeds[0]) for name in options.rows])
    if options.json:
        save_json(Path(options.json), {"rows": summary, "runs": results, "seeds": list(options.seeds)})
    return 0


def commands(options: AblateOptions) -> list[list[str]]:
    """Every tokenizer once, then every row's student; each with its own folder, so that all of it resumes."""
    shared = ["--preset", options.preset] + (["--data", options.data] if options.data else [])
    plan: list[list[str]] = []
    for seed in options.seeds:
        seeded = [*shared, "--seed", str(seed)]
        for kind in dict.fromkeys(TABLE[name].tokenizer for name in options.rows):
            out = str(tokenizer_folder(options, kind, seed))
            words = ["tokenizer", *seeded, *TOKENIZERS[kind], "--steps", str(options.tokenizer_steps), "--out", out]
            plan.append([*words, *shlex.split(options.tokenizer_options)])
        every = max(1, options.distill_steps // options.points)
        watched = ["--save-every", str(every), "--picture-every", str(every), "--keep", str(options.points + 1)]
        for name in options.rows:
            row = TABLE[name]
            words = ["distill", *seeded, "--tokenizer", str(tokenizer_folder(options, row.tokenizer, seed))]
            words += ["--depth", str(options.depth), "--steps", str(options.distill_steps), *row.teacher, *watched]
            words += ["--out", str(folder(options, name, seed)), *shlex.split(options.distill_options)]
            plan.append(words)
    return plan


def folder(options: AblateOptions, row: str, seed: int) -> Path:
    """The student's run."""
    return Path(options.out) / f"{row}-seed{seed}"


def tokenizer_folder(options: AblateOptions, kind: str, seed: int) -> Path:
    return Path(options.out) / f"tokenizer-{kind}-seed{seed}"


def bind(options: AblateOptions) -> None:
    """Raises UsageError where --out holds an ablation under another budget."""
    names = (
        "preset",
        "data",
        "depth",
        "tokenizer_steps",
        "distill_steps",
        "tokenizer_options",
        "distill_options",
        "points",
    )
    ours = {name: getattr(options, name) for name in names}
    file = Path(options.out) / "ablate.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        if changed := [name for name in names if theirs.get(name) != ours[name]]:
            raise UsageError(
                f"--out {options.out} holds an ablation with {changed[0]} = {theirs.get(changed[0])}, this one has "
                f"{ours[changed[0]]}; rows are compared under one budget, so choose another --out."
            )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    save_json(file, ours)


def launch(words: Sequence[str]) -> int:
    """One command in a process of its own, by run.sh, which starts several where there are several GPUs."""
    environment = os.environ | {"REFOCUS_PYTHON": os.environ.get("REFOCUS_PYTHON", sys.executable)}
    process = subprocess.Popen(["bash", str(ROOT / "run.sh"), *words], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C has reached it too: it saves and leaves with 130
            continue


def summarise(name: str, results: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of each number of the last point, and how it differs from other rows.

    "against" maps a row to the differences (this row's number less that one's, seed by seed): of its distances from the
    full method, and of the cross-entropy from the row that has the same tokens but no teacher.
    """
    row, values = TABLE[name], last_numbers(results[name])
    against: dict[str, dict[str, Any]] = {}
    if name != "full" and "full" in results:
        theirs = last_numbers(results["full"])
        distances = [key for key in values if not key.startswith(("ce_", "gap_"))]
        against["full"] = {key: dataclasses.asdict(paired(values[key], theirs[key])) for key in distances}
    for other in results:
        if other != name and TABLE[other].tokenizer == row.tokenizer and TABLE[other].teacher and not row.teacher:
            theirs = last_numbers(results[other])
            against[other] = {"ce_student": dataclasses.asdict(paired(values["ce_student"], theirs["ce_student"]))}
    return {
        "title": row.title,
        "tokenizer": row.tokenizer,
        "mean": {key: statistics.fmean(entry) for key, entry in values.items()},
        "spread": {key: statistics.stdev(entry) if len(entry) > 1 else None for key, entry in values.items()},
        "against": against,
        "paper": {"fid": row.fid, "is": row.inception_score},
    }


def last_numbers(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Each number of the last point, one value a seed."""
    last = [run["points"][-1] | {key: value for key, value in run.items() if key != "points"} for run in runs]
    return {key: [entry[key] for entry in last] for key in last[0] if isinstance(last[0][key], float)}


@dataclass(frozen=True)
class Difference:
    """Of two rows over the same seeds: the mean, and half the width of its 95% confidence interval (Student's t), None for one
    seed."""

    mean: float
    margin: float | None


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Seed by seed, so that what the seeds share drops out."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    margin = None
    if n > 1:
        from scipy.stats import t

        margin = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return Difference(statistics.fmean(differences), margin)
