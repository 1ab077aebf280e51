"""The case of reading images: the loaders of `bench --section data`, on one core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from refocus_ext.evidence.bench import data
from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.turns import Part


@contextlib.contextmanager
def loading(bench: Bench) -> Iterator[Comparison]:
    with data.loaders(bench.geometry.image_size) as (count, parts):
        rows = [Part(data.NAMES[name], run, images=count) for name, run in parts.items()]
        yield Comparison(
            f"Reading JPEGs of {data.SIZE[0]}x{data.SIZE[1]} px, one core of {cores()}",
            rows,
            ("Stage 1, and stage 2 without a token cache, read images at the rate of their step.",),
            host=True,
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
