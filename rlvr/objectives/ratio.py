"""Ratios of policies and what clips them: tensors [B,T], shared by surrogates and corrections."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def log_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """`logp - old_logp`, clamped to [-20, 20] so that exp stays finite (no gradient beyond)."""
    return (logp - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp of a sum of log-ratios, clamped to [-20, 20] like a single one."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def shaped_ratio(log_ratio: Tensor, *, beta: float) -> Tensor:
    """f(r) = r / (r + beta), ExGRPO's shaping (2510.02245) of the ratio of a replayed token.

    d f / d log r = beta r / (r + beta)^2: 0.25 at r = beta, its maximum; 0.0826 at r = 1 with beta 0.1.
    """
    ratio = bounded_exp(log_ratio)
    return ratio / (ratio + beta)


def row_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum over each row's trained tokens, [B,T] -> [B,1]."""
    return torch.where(mask != 0, values, torch.zeros_like(values)).sum(dim=1, keepdim=True)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each row's trained tokens, [B,T] -> [B,1]; 0 in a row without any."""
    return row_sum(values, mask) / (mask != 0).sum(dim=1, keepdim=True).clamp(min=1)


class Clipped(NamedTuple):
    """A clipped surrogate and what its metrics need; all [B,T], all but `loss` detached."""

    loss: Tensor
    low: Tensor  # 1 where the lower bound took the gradient away (A < 0)
    high: Tensor  # 1 where the upper bound took the gradient away (A > 0)
    dual: Tensor  # 1 where the dual bound took the gradient away (A < 0)


def clip_loss(ratio: Tensor, advantages: Tensor, *, low: float, high: float, dual: float | None = None) -> Clipped:
    """PPO clip with separate bounds, and the dual clip (1912.09729).

    l = max(-A r, -A clip(r, 1 - low, 1 + high)); with `dual` = c, where A < 0: l = min(l, -A c).
    `low` = `high` is PPO, `high` > `low` is DAPO's clip-higher (2503.14476).
    """
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high)
    loss = torch.maximum(plain, bounded)
    negative = advantages < 0
    at_dual = torch.zeros_like(negative)
    if dual is not None:
        ceiling = -advantages * dual
        at_dual = negative & (loss > ceiling)
        loss = torch.where(at_dual, ceiling, loss)
    r = ratio.detach()
    marks = (negative & (r < 1.0 - low), (advantages > 0) & (r > 1.0 + high), at_dual)
    return Clipped(loss, *(mark.to(r.dtype) for mark in marks))
