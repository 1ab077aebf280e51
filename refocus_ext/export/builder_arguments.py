"""Arguments of upstream's `build_vae_var` for a student, geometries it cannot build, and the notebook's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patches.upstream import VAR_PATCH_NUMS
from refocus_ext.sampling.student import Student
from refocus_ext.storage.upstream_weights import vae_geometry

# The arguments that upstream's demo_sample.ipynb gives, and the one for which it uses the builder's default.
NOTEBOOK: dict[str, Any] = {
    "V": 4096,
    "Cvae": 32,
    "ch": 160,
    "share_quant_resi": 4,
    "patch_nums": VAR_PATCH_NUMS,
    "num_classes": 1000,
    "depth": 16,
    "shared_aln": False,
    "attn_l2_norm": True,
}
NOTEBOOK_NAMES = {"depth": "MODEL_DEPTH"}  # arguments that the notebook names differently
NOTEBOOK_DEPTHS = (16, 20, 24, 30)
NOTEBOOK_LAST_LABEL, NOTEBOOK_TOP_K = 980, 900


def build_arguments(student: Student) -> dict[str, Any]:
    """Keyword arguments of upstream's `build_vae_var`, by its names."""
    shape, codes = student.geometry, vae_geometry(student.vae.state_dict())
    return {
        "V": shape.vocab_size,
        "Cvae": shape.z_channels,
        "ch": codes.ch,
        "share_quant_resi": codes.share_quant_resi,
        "patch_nums": shape.patch_nums,
        "num_classes": shape.num_classes,
        "depth": shape.depth,
        "shared_aln": shape.shared_aln,
        "attn_l2_norm": shape.attn_l2_norm,
    }


def builder_obstacle(student: Student) -> str:
    """Why `build_vae_var`, which derives width and heads from the depth, cannot build the student; empty if it can."""
    shape = student.geometry
    if (shape.embed_dim, shape.num_heads) == (64 * shape.depth, shape.depth):
        return ""
    return f"depth {shape.depth} with width {shape.embed_dim} and {shape.num_heads} heads"


def vae_file_name(arguments: dict[str, Any]) -> str:
    """The file name in upstream's style: 'vae_ch160v4096z32.pth'."""
    return f"vae_ch{arguments['ch']}v{arguments['V']}z{arguments['Cvae']}.pth"


def changes_for_notebook(arguments: Mapping[str, Any]) -> list[str]:
    """What to change in the notebook, such as 'V=8192' or 'MODEL_DEPTH=20'; empty if it runs unedited."""
    given = {**arguments, "patch_nums": tuple(arguments["patch_nums"])}
    changes = [f"{NOTEBOOK_NAMES.get(name, name)}={value}" for name, value in given.items() if value != NOTEBOOK[name]]
    if (name := vae_file_name(given)) != vae_file_name(NOTEBOOK):
        changes.append(f"vae_ckpt='{name}'")
    if given["depth"] not in NOTEBOOK_DEPTHS:
        changes.append(f"the assert below MODEL_DEPTH, which allows {', '.join(map(str, NOTEBOOK_DEPTHS))}")
    if given["num_classes"] <= NOTEBOOK_LAST_LABEL:
        changes.append(f"class_labels, to labels below {given['num_classes']}")
    if given["V"] < NOTEBOOK_TOP_K:
        changes.append(f"top_k={given['V']}")
    return changes
