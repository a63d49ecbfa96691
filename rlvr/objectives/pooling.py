"""One vector for a response: the mean of its hidden states, projected to a few dimensions (RepExp, 2510.11686).

phi = P^T mean_t h_t         P [h,d] sparse: sqrt(3 / d) times +1, 0, -1 with chances 1/6, 2/3, 1/6
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def pooled_state(hidden: Tensor, *, d: int) -> Tensor:
    """[d] float32 of states [n,h]; 0 where n is 0. Inner products are kept in expectation, whatever d."""
    if not len(hidden):
        return hidden.new_zeros(d, dtype=torch.float32)
    matrix = _projection(hidden.shape[1], d).to(hidden.device)
    return (hidden.double().mean(dim=0) @ matrix).float()


@lru_cache(maxsize=8)
def _projection(width: int, d: int) -> Tensor:
    """[width,d] float64, the same in every process and every step."""
    signs = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    picks = torch.randint(6, (width, d), generator=torch.Generator().manual_seed(width * 1_000_003 + d))
    return signs[picks] * (3.0 / d) ** 0.5
