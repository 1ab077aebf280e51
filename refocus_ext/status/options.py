"""Options of `status`. Imports no torch, so that it is instant."""

from __future__ import annotations

from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import positive

WHAT = Heading("which runs")
HOW = Heading("how")


class StatusOptions(Options):
    """
    Lists runs of `tokenizer` and `distill`, parts of an ablation too: how far they are, whether they run, their last
    validation, what looks wrong, and what to type next. Without RUN: every run under runs/. Reads files only, and
    writes nothing into a run.
    """

    runs: tuple[str, ...] = WHAT((), "run folders, or folders of runs", positional=True, nargs="*", metavar="RUN")
    verify: bool = HOW(False, "read the newest checkpoint of every run whole and compare it with its checksum")
    watch: float = HOW(0.0, "list again every so many seconds, until Ctrl-C", positive(float), unit="seconds")
    json: str = shared.json_file(HOW, "also write what is listed to this file, as JSON")
