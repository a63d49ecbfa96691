"""Entropy of a token distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logp: Tensor) -> Tensor:
    """Entropy in nats from log-probabilities over the vocabulary, [..., V] -> [...]; H = -sum_v p_v log p_v.

    A token that cannot occur (-inf) adds 0 to the value and to the gradient.
    """
    possible = logp > float("-inf")
    return -(logp.exp() * torch.where(possible, logp, torch.zeros_like(logp))).sum(dim=-1)
