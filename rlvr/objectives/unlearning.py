"""Unlikelihood of tokens, in log space: what EEPO (2510.05837) descends on to make sampled responses less likely."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_HALF = -math.log(2.0)


def complementary_loss(logp: Tensor, *, eps: float) -> Tensor:
    """c = -log(1 - min(p, 1 - eps)) of log-probabilities [B,T]; **descending** on it lowers p.

    dc / dlogp = p / (1 - p), so the gradient on the token's own logit is p: sure tokens move most. Beyond 1 - eps there
    is no gradient. 1 - p is made from logp, as -expm1(logp) where p is large and by log1p(-p) where it is small.
    """
    bounded = logp.clamp(max=math.log1p(-eps))
    sure = bounded > LOG_HALF
    # each branch sees only what it is exact for: `where` alone would still differentiate the other one
    large = torch.where(sure, bounded, torch.full_like(bounded, LOG_HALF))
    small = torch.where(sure, torch.full_like(bounded, LOG_HALF), bounded)
    return -torch.where(sure, torch.log(-torch.expm1(large)), torch.log1p(-small.exp()))
