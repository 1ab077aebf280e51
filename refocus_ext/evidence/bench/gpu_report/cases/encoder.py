"""The case of the token cache: images to structure and alias tokens, by the arithmetic of the encoders."""

from __future__ import annotations

import functools

from refocus_ext.evidence.bench.gpu_report.bench import Bench, Comparison
from refocus_ext.evidence.bench.gpu_report.turns import Part
from refocus_ext.tokens.tokenize import PRECISIONS, token_counts, tokenize


def tokens(bench: Bench, batch: int) -> Comparison:
    tokenizer, x = bench.tokenizer(), bench.images(batch)
    each = sum(token_counts(tokenizer))
    precisions = [word for word in PRECISIONS if word != "tf32" or bench.kind.has_tf32]
    parts = [
        Part(word, functools.partial(tokenize, tokenizer, x, word), images=batch, tokens=batch * each)
        for word in precisions
    ]
    note = (
        f"{bench.geometry.states} focus states and their alias views, {each} tokens an image; images are on the device."
    )
    return Comparison(f"Token cache, encoding of batches of {batch}", parts, (note,))
