"""The rows of Table 2: which stage 1 and which stage 2 each of them trains."""

from __future__ import annotations

from dataclasses import dataclass


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
ROWS = ("baseline", "full", "no-refocusing", "gaussian", "no-teacher", "shared-codebook")
