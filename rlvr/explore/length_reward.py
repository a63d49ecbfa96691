"""Length-shaped reward of Kimi k1.5 (2501.12599): among the responses to one prompt, shorter is better.

    lambda_i = 0.5 - (len_i - len_min) / (len_max - len_min)                           in [-0.5, 0.5]
    R_i <- R_i + coef * (lambda_i            if row i is correct
                         min(0, lambda_i)    otherwise),    0 when len_max = len_min   R [G]

Lengths are response tokens; minimum and maximum are over the rows whose verdict is not an error.
Differs from the paper: paid only in groups whose **raw** scores differ. In an all-equal group the bonus would be
the whole variance of the group, and division by its standard deviation would turn any coefficient, however small,
into full-size advantages. Lengths count tokens (open-r1's code counts characters). The paper switches the term on
after a start without it: begin with `coef: 0`, then start another run from that one. The default `coef` is ours.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics


class Config(AddOnConfig):
    """`coef` is the full range of the bonus, in units of reward; 0 turns it off."""

    coef: NonNegativeFloat = 0.1


class LengthReward(AddOn):
    """reward += coef * length score, in groups that raw correctness already tells apart."""

    kind = "length_reward"
    Config = Config

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the bonus added; rows in error keep NaN."""
        if not self.config.coef:
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows with a bonus that is not 0; `bonus_abs_mean` over those rows."""
        paid = np.concatenate([np.zeros(0, dtype=np.float32), *(self._bonus(group) for group in groups)])
        paid = paid[paid != 0]
        return {"active": float(len(paid)), "bonus_abs_mean": float(np.abs(paid).mean()) if len(paid) else 0.0}

    def _bonus(self, group: Group) -> F32:
        return (self.config.coef * length_scores(group)).astype(np.float32)


def length_scores(group: Group) -> F32:
    """The paper's length score [G], in [-0.5, 0.5]; 0 on rows in error and in groups of one raw score or length."""
    valid = group.valid
    lengths = np.array([t.response_len for t in group.trajectories], dtype=np.float64)
    kept, scores = lengths[valid], group.scores[valid]
    if not len(kept) or kept.min() == kept.max() or scores.min() == scores.max():
        return np.zeros(len(group), dtype=np.float32)
    score = 0.5 - (lengths - kept.min()) / (kept.max() - kept.min())
    score = np.where(group.correct, score, np.minimum(score, 0.0))
    return np.where(valid, score, 0.0).astype(np.float32)


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
