"""Weights for the gap between the policy that sampled and the policy that the trainer calls old.

rho = exp(old_logp - behaviour_logp), detached. Decoupled PPO (2110.00641, AReaL 2505.24298) is the same formula: its
proximal policy is our old one, its behaviour policy is the sampler at whatever version produced the token. So
staleness and the sampler/trainer gap are corrected by this one weight, once; a second correction on top would count
the gap twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlvr.objectives.ratio import log_ratio
from rlvr.objectives.view import TokenView


def mismatch(view: TokenView) -> Tensor:
    """log rho [B,T], detached; 0 where the behaviour log-prob is unknown, so that such a token has weight 1."""
    with torch.no_grad():
        gap = log_ratio(view.old_logp, view.behaviour_logp)
        return torch.where(view.known > 0, gap, torch.zeros_like(gap))
