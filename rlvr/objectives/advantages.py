"""Group-relative advantages: pure functions of one group's rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, std: bool, eps: float) -> Tensor:
    """Centred rewards [G] -> [G] float32, divided by (unbiased std + eps) when `std`.

    A row with a NaN reward (a verifier error) leaves mean and std and gets 0. A group with fewer than two
    valid rows gives 0: a row that is its own baseline says nothing, and an advantage equal to the raw reward
    (what verl does there) would be an unbaselined update. An all-equal group gives exactly 0: without the
    test, rounding in the mean divided by `eps` would be a spurious advantage.
    """
    wide = rewards.double()
    valid = ~wide.isnan()
    kept = wide[valid]
    if kept.numel() < 2 or bool(kept.max() == kept.min()):
        return torch.zeros_like(rewards, dtype=torch.float32)
    centred = wide - kept.mean()
    scaled = centred / (kept.std(unbiased=True) + eps) if std else centred
    return torch.where(valid, scaled, 0.0).float()


def grpo(rewards: Tensor, *, std: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO (2402.03300): A_i = (R_i - mean R) / (std R + eps), [G] -> [G]. See `group_advantages`."""
    return group_advantages(rewards, std=std, eps=eps)


def dr_grpo(rewards: Tensor) -> Tensor:
    """Dr.GRPO (2503.20783): A_i = R_i - mean R, [G] -> [G]. See `group_advantages`."""
    return group_advantages(rewards, std=False, eps=0.0)
