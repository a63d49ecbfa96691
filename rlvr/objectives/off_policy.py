"""Weights of tokens that the old policy did not sample, as functions of log pi; all tensors [B,T].

Differentiable in `logp`. They replace an importance ratio where the behaviour policy's probability is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def shaped_probability(logp: Tensor, *, gamma: float) -> Tensor:
    """f(pi) = pi / (pi + gamma), LUFFY's policy shaping (2504.14945, equation of section 3.2).

    The behaviour probability is taken as 1. d f / d logp = gamma pi / (pi + gamma)^2: 0.25 at pi = gamma, its maximum.
    """
    p = logp.clamp(max=0.0).exp()
    return p / (p + gamma)


def multiple_importance(logp: Tensor, old_logp: Tensor) -> Tensor:
    """r = 2 pi / (pi_omega + pi_old), pi_omega = (pi_old + 1) / 2: RL-PLUS's ratio (2508.00222) of an unknown teacher.

    The denominator is at least 1/2, so r <= 4 pi.
    """
    old = old_logp.detach().clamp(max=0.0).exp()
    return 2.0 * logp.clamp(max=0.0).exp() / (0.5 * (old + 1.0) + old)


def unexplored(logp: Tensor, *, gamma: float) -> Tensor:
    """(1 - pi)^gamma, detached: RL-PLUS's factor of the advantage of tokens that the policy finds unlikely."""
    return (1.0 - logp.detach().clamp(max=0.0).exp()) ** gamma
