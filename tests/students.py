"""Tiny students for tests: their weights are drawn so that attention, guidance and classes all change the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from conftest import PATCH_NUMS, small_vae

from patches import Upstream, load_upstream
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage.atomic import sha256

CLASSES = ["tench", "Golden Retriever", "toaster"]


def lively_var(upstream: Upstream, *, vae: Any = None, **options: Any) -> Any:
    """A VAR on `small_vae`, frozen and in eval mode."""
    vae = vae or small_vae(upstream).requires_grad_(False).eval()
    var = upstream.build_var(vae, **({"depth": 2, "num_classes": 5} | options))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in var.parameters():
            deviation = 0.1 if parameter.ndim == 2 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * deviation)
    return var.requires_grad_(False).eval()


def write_run(
    folder: Path, *, var: Any = None, pyramid: FocusPyramid | None = None, seed: int = 0, **options: Any
) -> Path:
    """A distill run folder as `bash run.sh distill` with `options` leaves it."""
    upstream = load_upstream()
    folder.mkdir(parents=True)
    var = var or lively_var(upstream, vae=small_vae(upstream, seed).requires_grad_(False).eval())
    name, vae = f"var_d{var.depth}.pth", var.vae_proxy[0]
    torch.save(var.state_dict(), folder / name)
    torch.save(vae.state_dict(), folder / "vae.pth")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    student = {"depth": var.depth, "num_classes": var.num_classes, "shared_aln": False, "file": name}
    shape = {"vocab_size": 64, "z_channels": 8, "ch": 32, "patch_nums": list(PATCH_NUMS), "image_size": 64}
    config = {
        "command": "distill",
        "identity": {},
        "options": options,
        "student": student,
        "vae": shape,
        "teacher": None,
    }
    pyramid = pyramid or FocusPyramid(image_size=64, states=3, rho_max=6.0)
    weights = {file: sha256(folder / file) for file in (name, "vae.pth")}
    (folder / "config.json").write_text(json.dumps(config | {"pyramid": pyramid.to_dict(), "weights": weights}))
    return folder
