"""From raw verdicts to per-token advantages: base reward, overlong, KL in the reward, then the add-ons.

Where `overlong: mask` takes a row out of the loss: between the two, so that the row has a reward in the baseline of its
group, and no part in what is over the batch (`without_truncated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rlvr.explore.base import AddOn
from rlvr.objectives.kl import kl_penalty
from rlvr.objectives.shaping import overlong_penalty
from rlvr.recipe import KL, Overlong
from rlvr.types import F32, Group, Trajectory


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
    penalty = kl_penalty(old, ref, estimator=estimator)
    known = old.isfinite() & ref.isfinite()  # a token of unknown log-prob is not in the loss either
    return float((torch.where(known, penalty, 0.0) * torch.from_numpy(weight)).sum())


def without_truncated(groups: Sequence[Group]) -> list[Group]:
    """Truncated rows with weight 0: DAPO's overlong filtering (2503.14476).

    They keep their verdict and their reward, so they stay in the baseline of their group. Having no trained token they
    are in nothing that is over the update or the step: normalisers, whitening, selections, controllers' means.
    """
    return [
        g.with_(trajectories=tuple(_untrained(t) if t.finish == "length" else t for t in g.trajectories))
        for g in groups
    ]


def _untrained(t: Trajectory) -> Trajectory:
    sft = None if t.sft_weight is None else np.zeros_like(t.sft_weight)
    return replace(t, weight=np.zeros_like(t.weight), sft_weight=sft)


def assign_credit(groups: Sequence[Group], addons: Sequence[AddOn]) -> list[Group]:
    """Per-token advantages of every row: the estimator comes first among the add-ons, the others may change them."""
    credited = groups
    for addon in addons:
        credited = addon.advantage(credited)
    return list(credited)
