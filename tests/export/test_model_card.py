"""The model card says what is known, and no more."""

from __future__ import annotations

import re
from typing import Any

from refocus_ext.export.builder_arguments import NOTEBOOK
from refocus_ext.export.model_card import model_card

GEOMETRY: dict[str, Any] = {
    "var": "var_d16.pth",
    "vae": "vae_ch160v4096z32.pth",
    "build_vae_var": NOTEBOOK | {"patch_nums": list(NOTEBOOK["patch_nums"])},
    "image_size": 256,
    "parameters": {"var": 310_283_520, "vae": 108_950_083},
    "pyramid": None,
    "training": {},
}
PYRAMID = {"states": 4, "blur": "disk", "rho_max": 12.0}
RECORD = {
    "sampled": {"labels": [0, 999], "seed": 0, "cfg": 4, "top_k": 900, "top_p": 0.95},
    "sha256": {"images": "f" * 64},
    "torch": "2.10",
    "processor": "x86_64",
    "threads": 2,
}


def test_published_weights_are_plain_var_and_nothing_is_made_up() -> None:
    card = model_card(GEOMETRY, None, "it was exported with --no-verify")
    assert "# VAR-d16, 256 px" in card and "ReFocus" not in card
    assert "The weights came without a record of their training." in card
    assert "Not verified: it was exported with --no-verify." in card
    assert "VAR, depth 16, 310.3M parameters" in card and "(680 tokens)" in card
    assert "runs unedited" in card


def test_a_students_pyramid_and_last_validation_are_told() -> None:
    training: dict[str, Any] = {
        "batch_size": 768,
        "validation": {"step": 400, "val/ce_student": 5.25, "held_out": True},
    }
    card = model_card(GEOMETRY | {"pyramid": PYRAMID, "training": training}, RECORD)
    assert "# ReFocus-VAR-d16, 256 px" in card and "| batch size | 768 |" in card
    assert "| cross-entropy on held-out images (nats per token) | 5.2500 at step 400 |" in card
    assert "| focus pyramid | 4 states, blur disk, rho_max 12 px |" in card and "the views must be blurred" in card
    assert f"`{'f' * 64}`" in card and "Not verified" not in card


def test_the_card_says_which_images_were_validated_on() -> None:
    """A finished demo was validated on crops of the photographs that it was trained on."""
    for held_out, where in (
        (True, "held-out images"),
        (False, "crops of the training images"),
        (None, "validation images"),
    ):
        known = {} if held_out is None else {"held_out": held_out}
        training = {"validation": {"step": 4, "val/ce_student": 5.25, **known}}
        card = model_card(GEOMETRY | {"training": training}, RECORD)
        assert f"| cross-entropy on {where} (nats per token) | 5.2500 at step 4 |" in card
        assert ("held-out" in card) == bool(held_out)


def test_without_a_blur_nothing_is_said_of_views() -> None:
    card = model_card(GEOMETRY | {"pyramid": PYRAMID | {"blur": "none"}, "training": {"seed": 1}}, RECORD)
    assert "must be blurred" not in card and "blur none" in card


def test_the_code_in_the_card_compiles_and_fits_the_codes() -> None:
    small = GEOMETRY | {"build_vae_var": GEOMETRY["build_vae_var"] | {"V": 64, "depth": 2}}
    card = model_card(small, None, "x")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    compile(code[1], "card", "exec")
    assert "top_k=64" in code[1] and "V=64" in card and "In VAR's `demo_sample.ipynb` change" in card
