"""Filters of logits before a token is drawn.

Shapes: B batch, l tokens of a scale, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top_k_(logits_BlV: Tensor, top_k: int) -> None:
    """Sets all but the k largest logits of each token to -inf, in place; ties with the k-th are kept."""
    weakest_kept = logits_BlV.topk(top_k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    logits_BlV.masked_fill_(logits_BlV < weakest_kept, -torch.inf)


def keep_top_p_(logits_BlV: Tensor, top_p: float) -> None:
    """Sets the least likely codes, together at most 1 - p of the probability, to -inf, in place; one code is always kept."""
    ascending, order = logits_BlV.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    dropped[..., -1] = False
    logits_BlV.masked_fill_(torch.empty_like(dropped).scatter_(-1, order, dropped), -torch.inf)
