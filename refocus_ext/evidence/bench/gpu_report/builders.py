"""Which function builds the cases of a kind; its arguments are the bench and the case's sizes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from refocus_ext.evidence.bench.gpu_report.bench import Comparison
from refocus_ext.evidence.bench.gpu_report.cases import (
    encoder,
    launches,
    loading,
    one_process,
    optimizer,
    sampling,
    student_step,
    tokenizer_step,
)

# A comparison, or a context that gives one while it is measured.
Builder = Callable[..., "Comparison | AbstractContextManager[Comparison]"]

BUILDERS: dict[str, Builder] = {
    "step": student_step.step,
    "attention": student_step.attention,
    "checkpointing": student_step.checkpointing,
    "compiled step": student_step.compiled,
    "stage 1": tokenizer_step.step,
    "compiled stage 1": tokenizer_step.compiled,
    "tokens": encoder.tokens,
    "sampling": sampling.sampling,
    "compiled sampling": sampling.compiled,
    "graphed sampling": sampling.graphed,
    "small launches": launches.small,
    "one process": one_process.ddp,
    "optimizer": optimizer.adamw,
    "slices": optimizer.slices,
    "loading": loading.loading,
}
