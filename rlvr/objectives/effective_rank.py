"""Effective rank of a sequence of hidden states, and how it moves along the sequence (VERL, 2509.23808).

Z [T,d], centred over T; singular values s, p = s / sum s;       ER(Z) = exp(-sum_i p_i log p_i)
m_j = ER(Z[:t_j]),   t_j = stride, 2 stride, ..., T              delta_j = m_j - mean(m_1 .. m_{j-1}),  j >= 2
ERV = mean_j delta_j                                             ERA = mean_j (delta_j - delta_{j-1}),  j >= 3
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(hidden: Tensor) -> Tensor:
    """ER of [T,d] (T tokens), a float64 scalar in [1, min(T - 1, d)]; 0 where nothing varies (T < 2, equal rows).

    The singular values come from the smaller Gram matrix, in float64: it squares them, so float32 would turn rounding
    into a long tail of small values, to which the entropy is sensitive.
    """
    centred = hidden.double() - hidden.double().mean(dim=0, keepdim=True)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram)
    values = torch.where(values > 1e-14 * values.amax(), values, torch.zeros_like(values)).sqrt()
    total = values.sum()
    if not total > 0:
        return total
    p = values / total
    return torch.special.entr(p).sum().exp()


def rank_dynamics(hidden: Tensor, *, stride: int) -> Tensor:
    """(ER, ERV, ERA) of [T,d], float32 [3]; ERV is 0 with fewer than two prefixes, ERA with fewer than three.

    NaN where a state is not finite (an eigenvalue solver raises there).
    """
    length = len(hidden)
    if not hidden.isfinite().all():
        return torch.full((3,), torch.nan, device=hidden.device)
    if length < 2:
        return torch.zeros(3, device=hidden.device)
    ends = [*range(stride, length, stride), length]
    ranks = torch.stack([effective_rank(hidden[:end]) for end in ends])
    before = ranks.cumsum(0)[:-1] / torch.arange(1, len(ranks), device=ranks.device)
    delta = ranks[1:] - before
    erv = delta.mean() if len(delta) else ranks.new_zeros(())
    era = delta.diff().mean() if len(delta) > 1 else ranks.new_zeros(())
    return torch.stack([ranks[-1], erv, era]).float()
