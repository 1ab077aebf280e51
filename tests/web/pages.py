"""What tests of the page share: two small students in runs/, pictures, and a free port."""

from __future__ import annotations

import socket
from pathlib import Path

from conftest import small_vae, write_images
from students import lively_var, write_run

from patches import load_upstream

NAMES = ("distill-a", "distill-b")
FIGURES_OF_A_SAMPLE = 1 + 4 + 4  # the image, its prefixes, their changes


def write_students(folder: Path) -> dict[str, Path]:
    """runs/distill-a and runs/distill-b, of different weights; the second is a demo's, which is drawn with less guidance."""
    upstream = load_upstream()
    runs = {}
    for seed, name in enumerate(NAMES):
        vae = small_vae(upstream, seed).requires_grad_(False).eval()
        preset = ("paper", "demo")[seed]
        runs[name] = write_run(folder / "runs" / name, var=lively_var(upstream, vae=vae), preset=preset)
    return runs


def write_pictures(folder: Path) -> tuple[Path, Path]:
    """A picture and a file that only looks like one."""
    write_images(folder, 1)
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no picture")
    return folder / "000.jpg", broken


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
