"""How PyTorch's threads wait for each other on a CPU; decided before torch is imported. Standard library only.

Spinning threads are fast while every core is free, and stall where another program holds one: on two cores the demo's step takes
0.65 of the rate with sleeping threads, and beside a busy core 1.3 times (`bench --section environment`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

POLICY = "OMP_WAIT_POLICY"
SAMPLES, PAUSE = 4, 0.04  # seconds between two looks


def choose_waiting() -> None:
    """Lets threads sleep while they wait, if half of the cores are held by other programs and the user has not decided."""
    if POLICY not in os.environ and held_cores() >= max(1, (os.cpu_count() or 1) // 2):
        os.environ[POLICY] = "PASSIVE"


def held_cores() -> int:
    """Other threads that run, or wait for a core, in most of a few looks; 0 where the system does not tell."""
    looks = []
    for _ in range(SAMPLES):
        looks.append(_runnable() - 1)  # without this one
        time.sleep(PAUSE)
    return max(0, sorted(looks)[SAMPLES // 2 - 1])


def _runnable() -> int:
    """Threads of the machine that could run now."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1
