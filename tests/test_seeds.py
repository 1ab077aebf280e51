"""Random streams: values that old runs rely on, and streams that do not meet."""

from __future__ import annotations

import itertools

import numpy as np

from refocus_ext.seeds import Stream, derived_seed, image_seed, stream_seed


def test_streams_keep_the_numbers_that_runs_were_made_with() -> None:
    kept = {"DATA_ORDER": 0, "CROPS": 1, "WEIGHTS": 2, "STEP": 3, "CODEBOOK_SAMPLE": 4, "CODEBOOK": 5, "REVIVAL": 6}
    kept |= {"FOCUS_STATE": 7, "SECOND_WEIGHTS": 8, "VIEW_OFFSET": 21, "MIRROR": 22, "REFERENCE_CROPS": 31}
    assert kept.items() <= {stream.name: int(stream) for stream in Stream}.items()
    assert stream_seed(5, Stream.STEP, 7, 1) == derived_seed(5, 3, 7, 1)


def test_a_seed_mixes_every_part_of_its_numbers() -> None:
    """By NumPy's SeedSequence, on 32-bit words: also for seeds beyond 32 bits."""
    high, low = np.random.SeedSequence([7, 0, 1, 0, 2**32 - 1, 1]).generate_state(2)
    assert derived_seed(7, 1, 2**33 - 1) == (int(high) << 31) ^ int(low)
    assert len({derived_seed(a, b) for a, b in itertools.product((0, 1, 2**32, -1), repeat=2)}) == 16


def test_no_image_of_a_set_shares_the_shuffles_stream() -> None:
    assert stream_seed(0, Stream.SET_SHUFFLE, 0) not in {image_seed(0, number) for number in range(5000)}
