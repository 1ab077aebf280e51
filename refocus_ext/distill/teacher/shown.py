"""Which alias tokens a teacher is shown in training: the image's own, or those of a control."""

from __future__ import annotations

from torch import Tensor

OWN, OTHER, CONSTANT, NO_ALIASES = "own", "other", "constant", "none"
# word -> what it is
SHOWN_IN_TRAINING = {
    OWN: "the image's own",
    OTHER: "those of the image half the micro-batch away",
    CONSTANT: "code 0 everywhere",
    NO_ALIASES: "no alias gates are built (with ema: self-distillation)",
}
CODE = 0  # of "constant": known without reading the data, so that a resumed run shows the same


def shown_in_training(word: str, alias_BT: Tensor) -> Tensor:
    """Alias tokens (B,T) of a micro-batch as the teacher is shown them.

    Raises:
        ValueError: "other" of a single image.
    """
    if word == CONSTANT:
        return alias_BT.new_full((), CODE).expand_as(alias_BT)
    if word != OTHER:
        return alias_BT
    if len(alias_BT) < 2:
        raise ValueError("a micro-batch of one image has no other image")
    return alias_BT.roll(len(alias_BT) // 2, dims=0)
