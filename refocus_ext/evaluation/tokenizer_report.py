"""What `eval --tokenizer` measured, as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refocus_ext.counting import counted
from refocus_ext.evaluation.samples_report import too_few
from refocus_ext.storage.results import write_numbers
from refocus_ext.tokens.trained_tokenizer import Tokenizer

# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class StateQuality:
    """The image of a focus state's prefix against F_k and against x; each maps a measure to its mean."""

    state: int
    radius: float  # pixels
    tokens: int  # of the prefix
    focus: dict[str, float]
    sharp: dict[str, float]


@dataclass(frozen=True)
class ScaleHealth:
    """Codebook usage of a token scale: percent of the codes seen, and exp of the entropy of the codes."""

    scale: int
    side: int  # latent cells
    state: int
    tokens: int  # tokens seen, an upper bound of both
    usage: float
    perplexity: float


@dataclass(frozen=True)
class TokenizerReport:
    """All numbers of an evaluation. `states` omits focus states that no token scale serves; the last one is the whole
    reconstruction. `not_measured` gives the reason for each number that is absent."""

    images: int
    replaced: int  # images that could not be decoded, replaced by the ones after them
    states: list[StateQuality]
    scales: list[ScaleHealth]
    codes: int
    rfid: float | None
    alias_explained: list[float] | None
    not_measured: dict[str, str]
    notes: list[str]
    view: str = ""  # how images became crops

    @property
    def counts(self) -> dict[str, int]:
        """The images that each number was computed from."""
        names = [*self.states[-1].sharp, "rfid", "usage", "perplexity", "alias_explained"]
        missing = {"rfid"} if self.rfid is None else set()
        missing |= {"alias_explained"} if self.alias_explained is None else set()
        return {name: self.images for name in names if name not in missing}

    @property
    def reconstruction(self) -> dict[str, float]:
        """The whole reconstruction against x."""
        return self.states[-1].sharp | ({} if self.rfid is None else {"rfid": self.rfid})


# ------------------------------------------------------------------------------------------------ results

LABELS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "rfid": "rFID", "alias": "alias explained variance"}
FORMATS = {"psnr": ".2f", "ssim": ".4f", "lpips": ".4f", "rfid": ".2f"}


def table(report: TokenizerReport) -> list[str]:
    """The report as lines: prefixes per state, codes per scale, the whole reconstruction, and what is missing."""
    return [
        f"of {counted(report.images, 'image')}:",
        *_state_table(report.states),
        "",
        *_scale_table(report),
        "",
        *_alias_lines(report.alias_explained),
        f"all tokens against x, {counted(report.images, 'image')}{', ' * bool(report.view)}{report.view}: "
        f"{_numbers(report.reconstruction)}",
        *too_few(report.images, "image", "rFID" if report.rfid is not None else "these numbers"),
        *(f"note: {note}" for note in report.notes),
        *(f"not measured: {LABELS[name]}, because {reason}" for name, reason in report.not_measured.items()),
    ]


def _state_table(states: Sequence[StateQuality]) -> list[str]:
    names = list(states[0].focus)
    columns = "".join(f"{LABELS[name]:>9}" for name in names)
    wide = len(columns)
    lines = [
        f"{'':<28}{'prefix against F_k':>{wide}}   {'prefix against x':>{wide}}",
        f"{'focus state':<12}{'blur':>8}{'tokens':>8}{columns}   {columns}",
    ]
    for row in states:
        blur = f"{row.radius:g} px" if row.radius else "none"
        cells = ["".join(f"{values[name]:>9{FORMATS[name]}}" for name in names) for values in (row.focus, row.sharp)]
        lines.append(f"{row.state:<12}{blur:>8}{row.tokens:>8}{cells[0]}   {cells[1]}")
    return lines


def _scale_table(report: TokenizerReport) -> list[str]:
    lines = [f"{'token scale':<12}{'cells':>8}{'state':>8}{'tokens':>12}{'codes used':>14}{'perplexity':>13}"]
    for row in report.scales:
        used = f"{round(row.usage * report.codes / 100)} of {report.codes}"
        cells = f"{row.side}x{row.side}"
        lines.append(f"{row.scale:<12}{cells:>8}{row.state:>8}{row.tokens:>12}{used:>14}{row.perplexity:>13.1f}")
    return lines


def _alias_lines(explained: Sequence[float] | None) -> list[str]:
    if explained is None:
        return []
    shares = ", ".join(f"state {k} {100 * share:.1f}%" for k, share in enumerate(explained, start=1))
    return [f"variance of the alias residuals explained by their tokens: {shares}"]


def _numbers(values: Mapping[str, float]) -> str:
    unit = {"psnr": " dB"}
    return ", ".join(f"{LABELS[name]} {value:{FORMATS[name]}}{unit.get(name, '')}" for name, value in values.items())


def write_json(path: Path, tokenizer: Tokenizer, source: str, report: TokenizerReport) -> None:
    """Writes the report and its inputs as JSON.

    Raises:
        RunFailed: the file cannot be written.
    """
    origin = {"tokenizer": str(tokenizer.path), "weights": tokenizer.config.get("weights", {}), "data": source}
    whole = {"pyramid": tokenizer.pyramid.to_dict(), "reconstruction": report.reconstruction, "counts": report.counts}
    write_numbers(path, origin | whole | dataclasses.asdict(report))
