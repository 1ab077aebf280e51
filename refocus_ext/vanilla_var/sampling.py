"""Drawing tokens from logits.

Shapes: B batch, l tokens of a scale, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus_ext.token_filters import keep_top_k_, keep_top_p_


def sample_with_top_k_top_p_(
    logits_BlV: Tensor,
    top_k: int = 0,
    top_p: float = 0.0,
    rng: torch.Generator | None = None,
    num_samples: int = 1,
) -> Tensor:
    """Draws |num_samples| codes for each token: (B,l,|num_samples|). The filters change `logits_BlV` in place.

    Args:
        top_k: 0 keeps all codes.
        top_p: nucleus sampling; 0 keeps all codes.
        rng: None takes the device's global generator.
        num_samples: negative draws without replacement.
    """
    B, tokens, V = logits_BlV.shape
    if top_k > 0:
        keep_top_k_(logits_BlV, top_k)
    if top_p > 0:
        keep_top_p_(logits_BlV, top_p)
    probabilities = logits_BlV.softmax(dim=-1).view(-1, V)
    drawn = torch.multinomial(probabilities, abs(num_samples), replacement=num_samples >= 0, generator=rng)
    return drawn.view(B, tokens, abs(num_samples))


def gumbel_softmax_with_rng(
    logits: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    rng: torch.Generator | None = None,
) -> Tensor:
    """`F.gumbel_softmax`, with noise from a given generator. `eps` is unused, as in PyTorch."""
    if rng is None:
        return F.gumbel_softmax(logits, tau=tau, hard=hard, eps=eps, dim=dim)
    noise = -torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_(generator=rng).log()
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft
