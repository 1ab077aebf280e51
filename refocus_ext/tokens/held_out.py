"""Which images are trained on and which validate: one rule for `tokens` and `distill`, so that they mean the same ones.

Where the data has no val/, a tokenizer's run has divided it: its share holds, or its validation images would be trained on. A bare
file was trained on nothing that is known, so its share is the caller's choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from refocus_ext.errors import UsageError, offering
from refocus_ext.images.sources.folder import NoValidation
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.sources.kinds import find_images
from refocus_ext.tokens.trained_tokenizer import Tokenizer


def share_of(tokenizer: Tokenizer, given: float | None) -> float:
    """The share of the images that is held out where the data has no images of its own for validation.

    Raises:
        UsageError: another share than that of the tokenizer's run is given.
    """
    if tokenizer.bare:
        return given or 0.0
    theirs = tokenizer.trained_with.val_share
    if given not in (None, theirs):
        held = f"held out a share of {theirs:g}" if theirs else "held out none"
        raise UsageError(
            f"{given:g} is not the share of the tokenizer {tokenizer.path}, which {held}; omit it, because images that the "
            "tokenizer was trained on cannot validate."
        )
    return theirs


def divided(tokenizer: Tokenizer, data: str, share: float) -> tuple[ImageSource, ImageSource]:
    """Training and validation images of `data`, else of the tokenizer's own data, else the demo photographs.

    Args:
        share: of `share_of`.

    Raises:
        UsageError: they are missing, or validation has a class that training has not.
    """
    with _offering_share(tokenizer):
        return find_images(tokenizer.data(data), share)


@contextlib.contextmanager
def _offering_share(tokenizer: Tokenizer) -> Iterator[None]:
    option = "--val-share 0.05" if tokenizer.bare else "--val-share of the `tokenizer` run, which held out none"
    with offering(option, NoValidation):
        yield
