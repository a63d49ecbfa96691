"""From raw verdicts to per-token advantages: base reward, overlong, KL in the reward, then the add-ons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlvr.explore.base import AddOn
from rlvr.objectives.advantages import grpo
from rlvr.objectives.kl import kl_penalty
from rlvr.objectives.shaping import overlong_penalty
from rlvr.recipe import KL, Advantage, Overlong
from rlvr.types import F32, Group


def shape_rewards(
    groups: Sequence[Group], addons: Sequence[AddOn], *, overlong: Overlong, kl: KL, max_tokens: int
) -> list[Group]:
    """Shaped rewards [G] of every group: NaN exactly on the rows whose verdict is an error."""
    shaped: Sequence[Group] = [
        group.with_(rewards=_base_rewards(group, overlong=overlong, kl=kl, max_tokens=max_tokens)) for group in groups
    ]
    for addon in addons:
        shaped = addon.reward(shaped)
    return [g.with_(rewards=np.where(g.valid, g.rewards, np.nan).astype(np.float32)) for g in shaped]


def _base_rewards(group: Group, *, overlong: Overlong, kl: KL, max_tokens: int) -> F32:
    rewards = group.scores.astype(np.float64)
    if overlong.kind == "shape":
        rewards += [
            overlong_penalty(t.response_len, max_len=max_tokens, buffer=overlong.buffer, factor=overlong.factor)
            for t in group.trajectories
        ]
    if kl.coef > 0 and kl.where == "reward":
        rewards -= [kl.coef * _sequence_kl(t.streams, t.weight, kl.estimator) for t in group.trajectories]
    return rewards.astype(np.float32)


def _sequence_kl(streams: object, weight: F32, estimator: str) -> float:
    assert isinstance(streams, dict)
    old, ref = (torch.from_numpy(streams[name]) for name in ("old_logp", "ref_logp"))
    return float((kl_penalty(old, ref, estimator=estimator) * torch.from_numpy(weight)).sum())


def assign_credit(groups: Sequence[Group], addons: Sequence[AddOn], *, advantage: Advantage) -> list[Group]:
    """Per-token advantages of every row: the group estimator spread over the row's weight, then the add-ons."""
    std = advantage.std if advantage.std is not None else advantage.kind == "grpo"
    credited: Sequence[Group] = [_group_advantage(group, std=std, eps=advantage.eps) for group in groups]
    for addon in addons:
        credited = addon.advantage(credited)
    return list(credited)


def _group_advantage(group: Group, *, std: bool, eps: float) -> Group:
    """Divided by the std only where the **raw** scores differ.

    In a group of equal raw scores all that differs is shaping (a length penalty, a bonus, KL in the reward): divided
    by its own std, however small it is, it would be as large as a success. There it keeps its size.
    """
    assert group.rewards is not None
    raw = group.scores[group.valid]
    std = std and bool((raw != raw[:1]).any())
    scalars = grpo(torch.from_numpy(group.rewards), std=std, eps=eps).numpy()
    rows = zip(scalars, group.trajectories, strict=True)
    return group.with_(advantages=tuple((a * (t.weight != 0)).astype(np.float32) for a, t in rows))
