"""The table of `legibility`."""

from __future__ import annotations

from collections.abc import Mapping

from refocus_ext.evidence.letters.measures import LetterScores

EXPLAINED = (
    "read: share that the classifier reads as the letter asked for. distance: Frechet distance of its features to fresh",
    "letters, lower is better. precision, recall: of the same features. edges, moire: energy in the bands of jagged edges",
    "and of folded hatches beside that of fresh letters; 0 dB is equal, above it there is too much, below it too little.",
)


def table(rows: Mapping[str, LetterScores]) -> list[str]:
    """The table that the command prints, with an explanation of its columns."""
    width = max(len(name) for name in rows)
    lines = [f"{'':<{width}}    read  distance  precision  recall     edges     moire"]
    for name, row in rows.items():
        lines.append(
            f"{name:<{width}}  {100 * row.legibility:5.1f}%  {row.letters_fd:8.3f}  {row.precision:9.3f}  {row.recall:6.3f}  "
            f"{row.edges:+5.1f} dB  {row.moire:+5.1f} dB"
        )
    return [*lines, "", *EXPLAINED]
