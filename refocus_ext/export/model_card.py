"""The README.md of an export: geometry, training, how to load it with upstream only, and what was verified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patches.upstream import PINNED_REVISION
from refocus_ext.export.builder_arguments import changes_for_notebook

UPSTREAM = "https://github.com/FoundationVision/VAR"


def model_card(geometry: Mapping[str, Any], verified: Mapping[str, Any] | None, reason: str = "") -> str:
    """Markdown.

    Args:
        geometry: geometry.json of the export.
        verified: verified.json, or None.
        reason: why it is not verified.
    """
    parts = [
        "---\ntags:\n- image-generation\n- visual-autoregressive-modeling\n---",
        f"# {_title(geometry)}",
        _opening(geometry),
        "## Geometry\n\n" + _table(_geometry_rows(geometry)),
        "## Load\n\n" + _loading(geometry),
        "## Training\n\n" + _training(geometry["training"], geometry["pyramid"]),
        "## Verified\n\n" + (_verified(verified) if verified else _not_verified(reason)),
    ]
    return "\n\n".join(parts) + "\n"


def _title(geometry: Mapping[str, Any]) -> str:
    name = "ReFocus-VAR" if geometry["pyramid"] else "VAR"
    return f"{name}-d{geometry['build_vae_var']['depth']}, {geometry['image_size']} px"


def _opening(geometry: Mapping[str, Any]) -> str:
    made = "trained by next-focus prediction; at inference it is" if geometry["pyramid"] else "in upstream's files:"
    return (
        f"A class-conditional image generator {made} a plain [VAR]({UPSTREAM}): same modules, same state dict, same "
        "sampling. The files hold tensors only; each `.safetensors` file holds the same tensors as the `.pth` beside it."
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _geometry_rows(geometry: Mapping[str, Any]) -> dict[str, Any]:
    build, parameters = geometry["build_vae_var"], geometry["parameters"]
    sides = ", ".join(map(str, build["patch_nums"]))
    return {
        f"`{geometry['var']}`": f"VAR, depth {build['depth']}, {parameters['var'] / 1e6:.1f}M parameters",
        f"`{geometry['vae']}`": f"VQVAE, {parameters['vae'] / 1e6:.1f}M parameters, base width {build['ch']}",
        "codes": f"{build['V']} of {build['Cvae']} channels",
        "classes": build["num_classes"],
        "image": f"{geometry['image_size']} x {geometry['image_size']} px",
        "token maps (`patch_nums`)": f"{sides} ({sum(pn * pn for pn in build['patch_nums'])} tokens)",
    }


def _loading(geometry: Mapping[str, Any]) -> str:
    build = geometry["build_vae_var"] | {"patch_nums": tuple(geometry["build_vae_var"]["patch_nums"])}
    arguments = ", ".join(f"{name}={value!r}" for name, value in build.items())
    top_k = min(900, build["V"])
    return f"""With [VAR]({UPSTREAM}) cloned and first on `sys.path`:

```python
import torch
from models import build_vae_var

vae, var = build_vae_var(device="cpu", {arguments})
vae.load_state_dict(torch.load("{geometry["vae"]}", weights_only=True), strict=True)
var.load_state_dict(torch.load("{geometry["var"]}", weights_only=True), strict=True)
vae.eval(), var.eval()
images = var.autoregressive_infer_cfg(B=1, label_B=torch.tensor([0]), g_seed=0, cfg=4, top_k={top_k}, top_p=0.95)
```

`images` is (B, 3, H, W) in [0, 1]. {_notebook(build)}"""


def _notebook(build: dict[str, Any]) -> str:
    changes = changes_for_notebook(build)
    if not changes:
        return "VAR's `demo_sample.ipynb` runs unedited in a folder with these files."
    return f"In VAR's `demo_sample.ipynb` change {', '.join(changes)}."


def _training(facts: Mapping[str, Any], pyramid: Mapping[str, Any] | None) -> str:
    rows = {name.replace("_", " "): value for name, value in facts.items() if name != "validation"}
    last = facts.get("validation", {})
    # older runs do not say whether training showed these images
    where = {True: "held-out images", False: "crops of the training images"}.get(
        last.get("held_out"), "validation images"
    )
    names = {"val/ce_student": f"cross-entropy on {where} (nats per token)", "val/ce_teacher": "its teacher's"}
    rows |= {names[name]: f"{last[name]:.4f} at step {last['step']:.0f}" for name in names if name in last}
    if not pyramid:
        return _table(rows) if rows else "The weights came without a record of their training."
    rows["focus pyramid"] = f"{pyramid['states']} states, blur {pyramid['blur']}, rho_max {pyramid['rho_max']:g} px"
    if pyramid["blur"] in ("none", "sharp"):
        return _table(rows)
    note = (
        "\n\nThe decoder needs no pyramid. To *encode* images as in training, the views must be blurred: ReFocus-VAR does it "
        "with the `pyramid` in `geometry.json`; upstream's `img_to_idxBl` encodes them sharp."
    )
    return _table(rows) + note


def _verified(record: Mapping[str, Any]) -> str:
    sampled = record["sampled"]
    return (
        f"A process that imported nothing but VAR at `{PINNED_REVISION}` loaded both files with `weights_only=True` and "
        "`strict=True`, and its sampled images and decoded tokens were, byte for byte, those of the project that trained "
        f"them (fp32, CPU, torch {record['torch']}, {record['processor']}, {record['threads']} threads).\n\n"
        f"sha256 of the float32 images of labels {sampled['labels']}, seed {sampled['seed']}, cfg {sampled['cfg']:g}, top_k "
        f"{sampled['top_k']}, top_p {sampled['top_p']:g}: `{record['sha256']['images']}`. On another machine the digest may differ."
    )


def _not_verified(reason: str) -> str:
    return f"Not verified: {reason}. `bash run.sh verify` with this folder does it and writes `verified.json`."
