"""Filters of logits, by hand."""

from __future__ import annotations

import torch

from refocus_ext.token_filters import keep_top_k_, keep_top_p_

NONE = -torch.inf


def test_top_k_keeps_the_largest_and_ties_with_the_last_of_them() -> None:
    logits = torch.tensor([[[1.0, 3.0, 2.0, 0.0], [2.0, 2.0, 2.0, 1.0]]])
    keep_top_k_(logits, 2)
    assert logits.tolist() == [[[NONE, 3.0, 2.0, NONE], [2.0, 2.0, 2.0, NONE]]]


def test_top_p_keeps_the_fewest_codes_that_reach_p_and_always_one() -> None:
    probability = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    for p, kept in ((0.7, [True, True, False, False]), (0.97, [True] * 4), (0.1, [True, False, False, False])):
        logits = probability.log()
        keep_top_p_(logits, p)
        assert logits.isfinite().flatten().tolist() == kept
