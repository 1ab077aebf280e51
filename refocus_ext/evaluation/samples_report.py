"""What `eval --samples` measured, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from refocus_ext.counting import counted
from refocus_ext.storage.results import write_numbers

# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class SampleReport:
    """All numbers of an evaluation; `not_measured` gives the reason for each that is None.

    `inception_score` is ADM's, over splits of 5000 images in the order of the file, `inception_score_shuffled` that of the
    same images shuffled. If `ordered_by_class`, the first one is not comparable with published scores.
    """

    images: int
    reference_images: int
    fid: float | None
    sfid: float | None
    inception_score: float
    inception_score_shuffled: float
    precision: float | None
    recall: float | None
    ordered_by_class: bool
    not_measured: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    statistics_images: int | None = None  # behind the reference's stored statistics, if there are any and it tells
    stored_statistics: bool = False

    @property
    def counts(self) -> dict[str, dict[str, int | None]]:
        """What each number was computed from; None where a file of statistics does not tell."""
        behind = self.statistics_images if self.stored_statistics else self.reference_images
        distances: dict[str, int | None] = {"samples": self.images, "reference": behind}
        neighbours: dict[str, int | None] = {"samples": self.images, "reference": self.reference_images}
        alone: dict[str, int | None] = {"samples": self.images}
        every = {
            "fid": distances, "sfid": distances, "inception_score": alone, "inception_score_shuffled": alone,
            "precision": neighbours, "recall": neighbours,
        }  # fmt: skip
        return {name: count for name, count in every.items() if getattr(self, name) is not None}


# ------------------------------------------------------------------------------------------------ results

ENOUGH = 10_000  # images, below which a distribution's numbers are not to be trusted


def too_few(count: int | None, what: str, numbers: str) -> list[str]:
    """A warning if there are fewer than `ENOUGH` images.

    >>> too_few(500, "sample", "FID")
    ['warning: 500 samples are fewer than 10,000: FID depends on their number; compare only with the same number.']
    """
    if count is None or count >= ENOUGH:
        return []
    depend = "depend" if numbers.endswith("s") else "depends"
    return [
        f"warning: {counted(count, what)} {'is' if count == 1 else 'are'} fewer than {ENOUGH:,}: {numbers} {depend} on "
        "their number; compare only with the same number."
    ]


COLUMNS = {
    "fid": ("FID", ".2f"),
    "sfid": ("sFID", ".2f"),
    "is": ("IS", ".1f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
}
# Table 1 of the paper: FID, IS, precision, recall.
_TABLE_1 = {
    12: ((5.81, 201.3, 0.81, 0.45), (3.95, 238.2, 0.84, 0.49)),
    16: ((3.55, 280.4, 0.84, 0.51), (2.89, 298.1, 0.85, 0.54)),
    20: ((2.95, 302.6, 0.83, 0.56), (2.25, 312.8, 0.86, 0.59)),
    24: ((2.33, 312.9, 0.82, 0.59), (1.75, 325.8, 0.84, 0.61)),
}
PUBLISHED: dict[int, dict[str, dict[str, float]]] = {
    depth: {
        name: dict(zip(("fid", "is", "precision", "recall"), values, strict=True))
        for name, values in zip(("VAR", "ReFocus-VAR"), rows, strict=True)
    }
    for depth, rows in _TABLE_1.items()
}


def table(report: SampleReport, depth: int | None = None) -> list[str]:
    """The report as lines: ours, the published numbers (of one depth, or all), and notes."""
    ours = {name: getattr(report, name) for name in ("fid", "sfid", "precision", "recall")}
    rows = [_row(f"{counted(report.images, 'sample').replace(',', '')}", ours | {"is": report.inception_score})]
    if report.ordered_by_class:
        rows.append(_row("  the same, shuffled", {"is": report.inception_score_shuffled}))
    depths = [depth] if depth else list(PUBLISHED)
    published = [_row(f"{name} d{d}", values) for d in depths for name, values in PUBLISHED[d].items()]
    return [
        f"{'':<22}" + "".join(f"{label:>11}" for label, _ in COLUMNS.values()),
        *rows,
        "published, ImageNet 256 px, 50000 samples (another machine, TensorFlow's Inception):",
        *published,
        "",
        *_counted(report),
        *too_few(report.images, "sample", "these numbers"),
        *too_few(report.counts.get("fid", {}).get("reference"), "reference image", "these numbers"),
        *(f"note: {note}" for note in report.notes),
        *(f"not measured: {COLUMNS[name][0]}, because {reason}" for name, reason in report.not_measured.items()),
    ]


def _counted(report: SampleReport) -> list[str]:
    """'FID, sFID: 50,000 samples against 10,000 reference images'."""
    short = {"inception_score": "is"}
    lines: dict[str, list[str]] = {}
    for name, count in report.counts.items():
        if name != "inception_score_shuffled":
            words = counted(count["samples"] or 0, "sample")
            if "reference" in count:
                behind = count["reference"]
                known = "" if behind is None else counted(behind, "reference image")
                words += f" against {known or 'statistics of an unknown number of reference images'}"
            lines.setdefault(words, []).append(COLUMNS[short.get(name, name)][0])
    return [f"{', '.join(names)}: {words}" for words, names in lines.items()]


def _row(name: str, values: dict[str, float | None] | dict[str, float]) -> str:
    cells = ((values.get(key), form) for key, (_, form) in COLUMNS.items())
    return f"{name:<22}" + "".join(f"{'-':>11}" if value is None else f"{value:>11{form}}" for value, form in cells)


def write_json(path: Path, samples: str, reference: str, report: SampleReport) -> None:
    """Writes the report and its inputs as JSON.

    Raises:
        RunFailed: the file cannot be written.
    """
    write_numbers(
        path, {"samples": samples, "reference": reference, "counts": report.counts} | dataclasses.asdict(report)
    )
