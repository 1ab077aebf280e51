"""The rows of Table 2: the stage 1 and stage 2 that each row trains."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage1:
    """A tokenizer: its name in folders and tables, and its options of `tokenizer`.

    With `structure`, the name of another one, only its alias tokenizer is trained, beside the VQVAE of that one: their structure
    tokens are the same.
    """

    name: str
    options: tuple[str, ...] = ()
    structure: str = ""

    @property
    def tokens(self) -> str:
        """The name of the tokenizer that makes the structure tokens: cross-entropies compare where it is the same."""
        return self.structure or self.name


@dataclass(frozen=True)
class Row:
    """A row: the options of its two commands beyond those of all rows, and the paper's FID and IS at d16.

    Rows that need the same tokenizer share it. A row that is not in the paper's table has no FID or IS. `controls` are rows of the
    same tokens whose teacher is shown less: what this row gains over them comes from the image's aliases. `source` is the row
    that trains the teacher of `--teacher frozen`.
    """

    title: str
    tokenizer: Stage1
    teacher: tuple[str, ...] = ()
    fid: float | None = None
    inception_score: float | None = None
    controls: tuple[str, ...] = ()
    source: str = ""

    @property
    def has_teacher(self) -> bool:
        return self.teacher != OFF

    @property
    def teaches(self) -> bool:
        """Whether the student learns anything from a teacher: one apart changes no bit of it."""
        return self.teacher != OFF and not set(NOTHING) <= set(itertools.pairwise(self.teacher))

    @property
    def gap(self) -> str:
        """The measured number that is the teacher's gap with the alias tokens that it was trained with."""
        for shown in ("other", "constant"):
            if ("--teacher-aliases", shown) in itertools.pairwise(self.teacher):
                return f"gap_{shown}"
        return "gap_teacher"


OFF = ("--teacher", "off")
EMA = ("--teacher", "ema")
NOTHING = (("--lambda-feat", "0"), ("--lambda-logit", "0"))
# A second VAR that learns beside the student and teaches it nothing: the student is bit for bit that of --teacher off.
APART = ("--teacher", "separate", *itertools.chain(*NOTHING))
# Outputs alone: eq. 13 compares features of one network, run twice.
FROZEN = ("--teacher", "frozen", "--lambda-feat", "0", "--lambda-logit", "1")
DISK = Stage1("disk")
NONE = Stage1("none", ("--blur", "none"))
STRIDE_4 = Stage1("stride-4", ("--alias-stride", "4"), structure="disk")
# To add a row, add an entry.
TABLE: dict[str, Row] = {
    # The structure tokens of "none" are plain VAR's, with or without an alias tokenizer.
    "baseline": Row("VAR (baseline)", NONE, OFF, 3.55, 280.4),
    "full": Row("ReFocus-VAR (full)", DISK, (), 2.89, 298.1, ("other-aliases", "constant-aliases")),
    "no-refocusing": Row("without refocusing", NONE, (), 3.51, 282.1),
    "gaussian": Row("Gaussian blur", Stage1("gaussian", ("--blur", "gaussian")), (), 3.32, 286.7),
    "no-teacher": Row("without the teacher", DISK, OFF, 3.06, 294.8),
    "shared-codebook": Row("shared codebook", Stage1("shared", ("--alias-codebook", "shared")), (), 3.14, 292.1),
    # Not in the paper: one change at a time. "no-refocusing" drops noise and terms of focus states too, and
    # "shared-codebook" gives alias tokens log2(V) bits in place of 9.
    "sharp-states": Row("focus states without blur", Stage1("sharp", ("--blur", "sharp"))),
    "no-prefixes": Row("stage 1 without prefixes", Stage1("no-prefixes", ("--prefix", "0"))),
    "decoder-prefixes": Row(
        "prefixes that train the decoder alone",
        Stage1("decoder-prefixes", ("--prefix", "1", "--prefix-trains", "decoder")),
    ),
    "all-prefixes": Row(
        "prefixes that train the tokens too", Stage1("all-prefixes", ("--prefix", "1", "--prefix-trains", "all"))
    ),
    "no-anchor": Row("stage 1 without the anchor", Stage1("no-anchor", ("--anchor", "0"))),
    "half-views": Row("state 1 encoded at half size", Stage1("half", ("--views", "half"))),
    "sinc": Row("sinc filter", Stage1("sinc", ("--blur", "sinc"))),
    "shared-512": Row("512 codes of the shared codebook", Stage1("shared-512", ("--alias-codebook", "shared-part"))),
    "own-8192": Row("own alias codebook of 8192 codes", Stage1("own-8192", ("--alias-codes", "8192"))),
    "whole-values": Row("values of eq. 10 as printed", DISK, ("--alias-values", "whole")),
    "as-printed": Row(
        "values of eq. 10 as printed, at the student's rate", DISK, ("--alias-values", "whole", "--teacher-lr", "1")
    ),
    "printed-distance": Row("features of eq. 13 as printed", DISK, ("--feature-distance", "printed")),
    # Another teacher, and controls that take away what it could pass on of the image's aliases. Another image's tokens vary as the
    # own ones do; constant ones are their mean, of which values are taken less: their teacher says what the student says.
    "other-aliases": Row("another image's alias tokens", DISK, ("--teacher-aliases", "other")),
    "constant-aliases": Row("constant alias tokens", DISK, ("--teacher-aliases", "constant")),
    "logits-only": Row("outputs alone", DISK, ("--lambda-feat", "0"), controls=("logits-only-constant",)),
    "logits-only-constant": Row(
        "outputs alone, constant alias tokens", DISK, ("--lambda-feat", "0", "--teacher-aliases", "constant")
    ),
    "features-only": Row("features alone", DISK, ("--lambda-logit", "0"), controls=("features-only-constant",)),
    "features-only-constant": Row(
        "features alone, constant alias tokens", DISK, ("--lambda-logit", "0", "--teacher-aliases", "constant")
    ),
    "ema": Row("averaged teacher", DISK, EMA, controls=("ema-other", "ema-constant", "ema-no-aliases")),
    "ema-other": Row("averaged teacher, another image's alias tokens", DISK, (*EMA, "--teacher-aliases", "other")),
    "ema-constant": Row("averaged teacher, constant alias tokens", DISK, (*EMA, "--teacher-aliases", "constant")),
    "ema-no-aliases": Row("averaged teacher without alias tokens", DISK, (*EMA, "--teacher-aliases", "none")),
    "ema-privileged": Row(
        "averaged teacher, privileged mask",
        DISK,
        (*EMA, "--mask", "privileged"),
        controls=("ema-constant", "ema-no-aliases"),
    ),
    "ema-stride-4": Row(
        "averaged teacher, alias stride 4", STRIDE_4, EMA, controls=("ema", "ema-constant", "ema-no-aliases")
    ),
    "copies": Row("copies of the last blocks", DISK, ("--teacher", "copies"), controls=("copies-constant",)),
    "copies-constant": Row(
        "copies of the last blocks, constant alias tokens",
        DISK,
        ("--teacher", "copies", "--teacher-aliases", "constant"),
    ),
    "apart": Row("teacher trained apart", DISK, APART),
    "apart-privileged": Row("teacher trained apart, privileged mask", DISK, (*APART, "--mask", "privileged")),
    "apart-constant": Row(
        "teacher trained apart, constant alias tokens", DISK, (*APART, "--teacher-aliases", "constant")
    ),
    "frozen": Row("trained and frozen teacher", DISK, FROZEN, controls=("frozen-constant",), source="apart"),
    "frozen-privileged": Row(
        "trained and frozen teacher, privileged mask",
        DISK,
        (*FROZEN, "--mask", "privileged"),
        controls=("frozen-constant",),
        source="apart-privileged",
    ),
    "frozen-constant": Row(
        "trained and frozen teacher, constant alias tokens",
        DISK,
        (*FROZEN, "--teacher-aliases", "constant"),
        source="apart-constant",
    ),
}
ROWS = tuple(TABLE)
PAPER = tuple(name for name, row in TABLE.items() if row.fid is not None)
# Names that stand for several rows.
GROUPS = {
    "paper": PAPER,
    # On the same structure tokens: no teacher, every kind of teacher, and their controls.
    "teachers": (
        "no-teacher", "full", "other-aliases", "constant-aliases", "logits-only", "logits-only-constant", "features-only",
        "features-only-constant", "ema", "ema-other", "ema-constant", "ema-no-aliases", "ema-privileged", "ema-stride-4",
        "copies", "copies-constant", "frozen", "frozen-privileged", "frozen-constant",
    ),
}  # fmt: skip
BY_NAME: dict[str, Stage1] = {row.tokenizer.name: row.tokenizer for row in TABLE.values()}
