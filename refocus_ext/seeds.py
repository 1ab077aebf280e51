"""Random streams from one seed: each use has its own, so that none depends on another."""

from __future__ import annotations

import numpy as np

# ------------------------------------------------------------------------------------------------ samples


def derived_seed(*parts: int) -> int:
    """A 63-bit seed from integers (seed, epoch, index, ...), well mixed."""
    words = [word for part in parts for word in (part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF)]
    high, low = np.random.SeedSequence(words).generate_state(2)
    return (int(high) << 31) ^ int(low)
