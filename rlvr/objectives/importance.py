"""Weights for the gap between the policy that sampled and the policy that the trainer calls old."""

from __future__ import annotations

import torch
from torch import Tensor

from rlvr.objectives.surrogates import log_ratio


def tis(old_logp: Tensor, behaviour_logp: Tensor, known: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling: w = min(exp(old_logp - behaviour_logp), cap), detached, [B,T].

    1 where the behaviour log-prob is unknown (`known` 0). Decoupled PPO (2110.00641, AReaL 2505.24298) is the
    same formula: its proximal policy is our old one, its behaviour policy is the sampler at whatever version
    produced the token. So staleness and the sampler/trainer gap are corrected by this one weight, once; a
    second correction on top would count the gap twice.
    """
    with torch.no_grad():
        weight = log_ratio(old_logp, behaviour_logp).exp().clamp(max=cap)
        return torch.where(known > 0, weight, torch.ones_like(weight))
