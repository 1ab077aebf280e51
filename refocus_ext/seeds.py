"""Random streams from one seed: each use has its own named stream, so that none depends on another."""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np


@unique
class Stream(IntEnum):
    """What random numbers are drawn for. The values are part of the meaning of a seed and must never change."""

    DATA_ORDER = 0  # permutation of an epoch
    CROPS = 1  # crop and flip of an image in an epoch
    WEIGHTS = 2  # of the main network
    STEP = 3  # what a training step draws: noise, dropped labels, stochastic depth
    CODEBOOK_SAMPLE = 4  # crops that the codebooks are initialised from
    CODEBOOK = 5  # k-means on them
    REVIVAL = 6  # which vectors replace dead codes
    FOCUS_STATE = 7  # the state whose prefix and anchor a step decodes
    SECOND_WEIGHTS = 8  # of the alias tokenizer, of the teacher
    VIEW_OFFSET = 21  # which of its fixed views an image shows first
    MIRROR = 22  # flips of views that are new in every epoch
    REFERENCE_CROPS = 31  # crops that the ablation compares samples with
    SET_SHUFFLE = 41  # order of a set of sampled images
    LETTERS = 51  # a drawn training picture
    HELD_OUT_LETTERS = 52  # a drawn picture that no training shows


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from integers (seed, stream, epoch, index, ...), well mixed."""
    words = [word for part in parts for word in (part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF)]
    high, low = np.random.SeedSequence(words).generate_state(2)
    return (int(high) << 31) ^ int(low)


def stream_seed(seed: int, stream: Stream, *numbers: int) -> int:
    """The seed of one stream of a run; `numbers` distinguish its draws (epoch, image, step, rank)."""
    return derived_seed(seed, stream, *numbers)


def image_seed(seed: int, number: int) -> int:
    """The seed of sampled image `number`.

    It has no stream, because the first sets were drawn without one. Other draws for a set must therefore pass a number
    to `stream_seed`, or they would share the stream of an image.
    """
    return derived_seed(seed, number)
