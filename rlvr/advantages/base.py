"""An advantage estimator is an add-on that comes first: from the rewards of groups to advantages per token.

What estimators share stands here too: which rows count, and how one number a response becomes one a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rlvr.explore.base import AddOn
from rlvr.types import F32, Group, Metrics

F64 = npt.NDArray[np.float64]


class Estimator(AddOn):
    """Base class. Override `scalars` (one number a response, from its group) or `advantage` (per token, or from
    the whole batch).

    `group.rewards` [G] are shaped; NaN exactly on the rows in error, which get no advantage. `fewest` is the size
    of the smallest group that the estimator can work with.
    """

    fewest: ClassVar[int] = 2

    def scalars(self, group: Group) -> F64:
        """Advantages [G] of one group; what stands on rows in error is ignored."""
        raise NotImplementedError(f"advantage {self.kind!r} overrides neither `scalars` nor `advantage`")

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Per-token `advantages` of every row; rows of another `Trajectory.adv_group` are a group of their own."""
        return [spread(group, self._apart(group)) for group in groups]

    def _apart(self, group: Group) -> F64:
        names = [t.adv_group for t in group.trajectories]
        if len(set(names)) < 2:
            return self.scalars(group)
        out, rewards = np.zeros(len(group)), shaped(group).astype(np.float32)
        for name in dict.fromkeys(names):
            mine = [i for i, other in enumerate(names) if other == name]
            rows = tuple(group.trajectories[i] for i in mine)
            out[mine] = self.scalars(group.with_(trajectories=rows, rewards=rewards[mine]))
        return out

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows with an advantage that is not 0; `abs_mean`: its size, over their trained tokens."""
        pairs = [(a, t.weight) for g in groups for a, t in zip(g.advantages or (), g.trajectories, strict=True)]
        moved = [a[weight != 0] for a, weight in pairs if a.any()]
        size = {"abs_mean": float(np.abs(np.concatenate(moved)).mean())} if moved else {}
        return {"active": float(len(moved))} | size


def shaped(group: Group) -> F64:
    """Shaped rewards [G]; NaN on rows in error. Raises ValueError before rewards are shaped."""
    if group.rewards is None:
        raise ValueError(f"group {group.draw} has no rewards yet: advantages come after `shape_rewards`")
    return np.where(group.valid, group.rewards, np.nan).astype(np.float64)


def silent(rewards: F64) -> bool:
    """Whether rewards [G] say nothing: fewer than two valid ones, or all of them equal.

    A row that is its own baseline says nothing, and an advantage equal to the raw reward (what verl does there) would
    be an unbaselined update. In an all-equal group rounding in the mean, divided by a small number, would be a
    spurious advantage.
    """
    kept = rewards[~np.isnan(rewards)]
    return len(kept) < 2 or bool(kept.max() == kept.min())


def centred(rewards: F64) -> F64:
    """R - mean R over the valid rows, [G]; exactly 0 on rows in error and in a silent group."""
    if silent(rewards):
        return np.zeros_like(rewards)
    return np.where(np.isnan(rewards), 0.0, rewards - np.nanmean(rewards))


def scores_differ(group: Group) -> bool:
    """Whether the **raw** scores of the valid rows differ.

    In a group of equal raw scores all that differs is shaping (a length penalty, a bonus, KL in the reward): divided
    by its own standard deviation, however small it is, it would be as large as a success. There it keeps its size.
    """
    raw = group.scores[group.valid]
    return bool((raw != raw[:1]).any())


def spread(group: Group, scalars: F64) -> Group:
    """The group with one number a response [G] on each of its trained tokens; 0 on rows in error."""
    values = np.where(group.valid, scalars, 0.0)
    rows = zip(values, group.trajectories, strict=True)
    return group.with_(advantages=tuple(_on_tokens(a, t.weight) for a, t in rows))


def _on_tokens(value: float, weight: F32) -> F32:
    return np.where(weight != 0, value, 0.0).astype(np.float32)
