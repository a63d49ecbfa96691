"""Entropy of a token distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits), [..., V] -> [...]; H = logsumexp(z) - sum_v p_v z_v.

    A logit of -inf is a token that cannot occur: it adds 0, and its gradient is 0.
    """
    possible = logits > float("-inf")
    p = logits.softmax(dim=-1)
    mean = (p * torch.where(possible, logits, torch.zeros_like(logits))).sum(dim=-1)
    return logits.logsumexp(dim=-1) - mean
