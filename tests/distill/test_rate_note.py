"""The note on --lr where the batch is not the one it was chosen for."""

from __future__ import annotations

from refocus_ext.distill.options import DistillOptions
from refocus_ext.distill.plan import rate_note
from refocus_ext.options.presets import preset


def test_a_batch_of_another_size_is_told_its_rate() -> None:
    usual = DistillOptions(preset="paper").replace(**preset("paper", "distill"))
    assert rate_note(usual) is None
    note = rate_note(usual.replace(batch_size=64))
    assert note is not None and "batches of 256 images" in note and note.endswith("batches of 64 have --lr 2.5e-05")
    assert rate_note(usual.replace(batch_size=64, lr=3e-4)) is None  # chosen by the user
