"""report.md of an ablation: Table 2 with the paper's numbers, figure 5, and samples of every row from the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from refocus_ext.evidence.ablation.options import AblateOptions
from refocus_ext.images.order import spread
from refocus_ext.images.picture import grid, save_png
from refocus_ext.sampling.pictures import shorten
from refocus_ext.sampling.sampler import FOR_FID, sample_images
from refocus_ext.sampling.student import load_student
from refocus_ext.storage.atomic import written_beside

COLUMNS, SIDE = 8, 96
NAMES = {
    "legibility": "legibility", "letters_fd": "letter distance", "precision": "precision", "recall": "recall",
    "edges": "edges, dB", "moire": "moire, dB",
    "thumbnail_fd": "thumbnail distance", "fid": "FID", "is": "IS", "fid*": "FID*", "is*": "IS*",
}  # fmt: skip
# The measure of figure 5 and of the differences between rows: the first that there is. Lower is better.
DISTANCES = ("fid", "fid*", "letters_fd", "thumbnail_fd")
_OTHER = "with Inception weights that are not the published ones, so it is not comparable with published values"
EXPLAINED = {
    "legibility": "share of the samples that a classifier of drawn letters reads as the letter asked for",
    "letters_fd": "Frechet distance of that classifier's features to those of fresh letters; lower is closer",
    "precision": "share of the samples near fresh letters in those features",
    "recall": "share of the fresh letters near samples in those features",
    "edges": "energy in the band of jagged edges beside that of fresh letters; 0 is equal, above it too much, below it too little",
    "moire": "the same in the band into which hatched grounds fold",
    "thumbnail_fd": "Frechet distance of 8 x 8 thumbnails (192 numbers per image) to data; lower is closer; detail is not measured",
    "fid": "on Inception features, against at most the same number of data images; lower is closer, and few images bias it upwards",
    "is": "Inception Score of the samples, on splits of 5000; higher is clearer and more varied",
    "fid*": f"FID {_OTHER}",
    "is*": f"Inception Score {_OTHER}",
}


def write_report(
    options: AblateOptions,
    table: Mapping[str, Any],
    summary: Mapping[str, dict[str, Any]],
    results: Mapping[str, Sequence[dict[str, Any]]],
    runs: Mapping[str, Path],
) -> Path:
    """Writes report.md, convergence.png and samples.png into --out and prints the table; returns the report's path."""
    out = Path(options.out)
    distances = [name for name in NAMES if name in next(iter(summary.values()))["mean"]]
    drawn = next(name for name in DISTANCES if name in distances)
    lines = table_lines(summary, distances)
    compared = [name for name in ("legibility", drawn, "edges", "moire") if name in distances]
    if differences := difference_lines(summary, compared):
        lines += ["", "Differences, seed by seed, with 95% confidence intervals:", "", *differences]
    print("\n" + "\n".join(lines))
    draw_convergence(out / "convergence.png", table, results, drawn)
    if runs:
        draw_samples(out / "samples.png", runs)
    stage_one = f"{options.tokenizer_steps} tokenizer steps"
    if options.tokenizer:
        stage_one = f"the tokenizer {Path(options.tokenizer).name} for all"
    text = [
        "# Ablation: the rows of Table 2",
        "",
        f"Preset {options.preset}, d{options.depth}, {stage_one} and {options.distill_steps} student "
        f"steps each, {options.images} samples per measurement (cfg 1.5, top-k 900, top-p 0.96), data: "
        f"{Path(options.data).name or 'the photographs inside scikit-image'}, seeds {', '.join(map(str, options.seeds))}. "
        f"Written by `bash run.sh ablate`.",
        "",
        *lines,
        "",
        *caveats(options, distances),
        "",
        f"![convergence](convergence.png)\n\n*{NAMES[drawn]} against steps (figure 5).*",
        "",
    ]
    if runs:
        text += ["![samples](samples.png)\n\n*Every row from the same seeds and classes.*", ""]
    report = out / "report.md"
    with written_beside(report) as beside:
        beside.write_text("\n".join(text))
    *first, last = ["report.md", "convergence.png", *(["samples.png"] if runs else [])]
    print(f"\n{', '.join(first)} and {last} are in {out}")
    return report


def table_lines(summary: Mapping[str, dict[str, Any]], distances: Sequence[str]) -> list[str]:
    """A Markdown table; a spread is the sample standard deviation over seeds."""
    heads = [NAMES[name] for name in distances] + [
        "student's cross-entropy (tokens)",
        "teacher's gap with the alias tokens it is trained with (with another image's)",
        "paper's FID, d16",
        "paper's IS",
    ]
    lines = ["| row | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in summary.values():
        cells = [_cell(row, name, "{:.3f}") for name in distances]
        cells.append(f"{_cell(row, 'ce_student', '{:.3f}')} ({row['tokenizer']})")
        gap = _cell(row, row["gap"], "{:.4f}") if row["gap"] in row["mean"] else "-"
        if "gap_other" in row["mean"]:  # a teacher without alias tokens has no such control
            gap += f" ({_cell(row, 'gap_other', '{:.4f}')})"
        lines.append(
            f"| {row['title']} | " + " | ".join([*cells, gap, *(_paper(row, name) for name in ("fid", "is"))]) + " |"
        )
    return lines


def difference_lines(summary: Mapping[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Rows minus others; with several seeds also whether 0 is outside the 95% confidence interval."""
    lines = []
    for row in summary.values():
        for other, differences in row["against"].items():
            title = summary[other]["title"]
            lines += [
                f"{row['title']} minus {title}, {NAMES[name]}: {_difference(differences[name])}"
                for name in names
                if name in differences
            ]
            if "ce_student" in differences:
                lines.append(
                    f"{row['title']} minus {title}, cross-entropy on the same tokens: {_difference(differences['ce_student'])}"
                )
    return [f"- {line}" for line in lines]


def _difference(value: Mapping[str, float | None]) -> str:
    mean, margin = value["mean"], value["margin"]
    assert mean is not None
    if margin is None:
        return f"{mean:+.3f} (one seed)"
    verdict = "a significant difference" if abs(mean) > margin else "no significant difference"
    return f"{mean:+.3f} +- {margin:.3f}, {verdict}"


def _paper(row: dict[str, Any], name: str) -> str:
    value = row["paper"][name]
    return "-" if value is None else f"{value}"


def _cell(row: dict[str, Any], name: str, form: str) -> str:
    mean, spread_ = row["mean"][name], row["spread"][name]
    return form.format(mean) + (f" +- {form.format(spread_)}" if spread_ is not None else "")


def caveats(options: AblateOptions, distances: Sequence[str]) -> list[str]:
    """What these numbers show and do not show."""
    lines = [f"- {NAMES[name]}: {EXPLAINED[name]}." for name in distances]
    seeds = len(options.seeds)
    lines.append(
        f"- {seeds} seed{'s' * (seeds > 1)}: "
        + (
            "this cannot show that one row is better than another; `--seeds 0,1,2,..` gives a spread."
            if seeds < 3
            else "+- in the table is the standard deviation of a row over its seeds, "
            + ("all with one tokenizer." if options.tokenizer else "each with its own tokenizer.")
        )
    )
    if options.preset == "demo":
        lines.append(
            "- A demo: students of a few million parameters memorize crops of a few photographs in a few hundred "
            "steps. It shows that every row trains, samples and is measured in the same way. It cannot show which row generates "
            "better: that takes ImageNet, d16 and FID on 50,000 samples."
        )
    lines.append("- The paper's columns are from ImageNet 256 x 256 at d16; they are not comparable with the others.")
    lines.append(
        "- Cross-entropies (nats per token) are comparable only between rows with the same tokens: "
        "other rows predict other targets."
    )
    return lines


def draw_convergence(
    path: Path, table: Mapping[str, Any], results: Mapping[str, Sequence[dict[str, Any]]], name: str
) -> None:
    """Figure 5: the distance at every measured checkpoint, mean over seeds with their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120, layout="constrained")
    for row, runs in results.items():
        steps = [point["step"] for point in runs[0]["points"]]
        values = torch.tensor([[point[name] for point in run["points"]] for run in runs])
        (line,) = axes.plot(steps, values.mean(0).tolist(), marker="o", markersize=3, label=table[row].title)
        if len(runs) > 1:
            low, high = values.min(0).values.tolist(), values.max(0).values.tolist()
            axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
    axes.set_xlabel("student steps")
    axes.set_ylabel(f"{NAMES[name]} (lower is better)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png")
    pyplot.close(figure)


def draw_samples(path: Path, runs: Mapping[str, Path]) -> None:
    """One line of samples per row, by its title."""
    rows, headers = [], [""]
    for run in runs.values():
        student = load_student(run)
        labels = (spread(student.trained_classes, COLUMNS) * COLUMNS)[:COLUMNS]
        headers = [shorten(student.class_name(label), SIDE) for label in labels]
        rows.append(list(sample_images(student, labels, seed=0, guidance=FOR_FID) * 2 - 1))
    save_png(path, grid(rows, headers, names=list(runs), side=SIDE))
