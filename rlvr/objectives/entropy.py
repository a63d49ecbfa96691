"""Entropy of a token distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLOOR = -1e4  # in place of -inf: its probability is 0 in every dtype, and 0 times a finite number is 0


def entropy(logp: Tensor) -> Tensor:
    """Entropy in nats from log-probabilities over the vocabulary, [..., V] -> [...]; H = -sum_v p_v log p_v.

    A token that cannot occur (-inf) adds 0 to the value and to the gradient.
    """
    return _Entropy.apply(logp)


class _Entropy(torch.autograd.Function):
    """With a backward of its own: the vocabulary is large, and autograd's would pass over it three times as often."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor) -> Tensor:
        ctx.save_for_backward(logp)
        return -torch.linalg.vecdot(logp.exp(), logp.clamp(min=FLOOR))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """dH / dlogp_v = -p_v (log p_v + 1)."""
        (logp,) = ctx.saved_tensors
        return logp.exp().mul_(logp.clamp(min=FLOOR).add_(1.0)).mul_(-grad[..., None])
