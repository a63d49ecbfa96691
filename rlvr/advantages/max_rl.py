"""MaxRL (2602.02710): rewards centred, then divided by the group's mean reward: prompts weigh as in maximum likelihood.

    A_i = (R_i - mean R) / mean R        0 where mean R = 0                             [G] -> [G]

With 0/1 rewards mean R estimates the pass rate p, and 1/p turns the gradient of p into that of log p: the expected
update is the gradient of sum_{k<G} pass@k / k, a truncation of log p. (The abstract speaks of order G: that comes out
without the baseline; with it, a group without success would have to push its rows down to reach order G.)
G counts the rows that are not errors. The equation is that of the authors' released analysis code and of two other
implementations; of the paper we had the abstract alone. Differs from that code: no epsilon in the denominator.
A negative reward means nothing as a probability: such a group is masked and counted (`masked_groups`). Rewards between
0 and 1 are accepted, without the guarantee.
Fidelity: reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, centred, shaped, spread
from rlvr.advantages.rows import masked
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group, Metrics


def max_rl(rewards: F64) -> F64:
    """Rewards [G], none negative -> advantages [G]; error rows (NaN), equal rewards and a mean of 0 give 0."""
    shifted = centred(rewards)
    kept = rewards[~np.isnan(rewards)]
    return shifted / (math.fsum(kept) / len(kept)) if shifted.any() else shifted


class Config(AddOnConfig):
    """Nothing to set."""


class MaxRL(Estimator):
    """Centred rewards over the mean reward."""

    kind = "max_rl"
    Config = Config

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row; a group with a negative reward is masked."""
        return [spread(g, max_rl(shaped(g))) if usable(shaped(g)) else masked(g) for g in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`masked_groups`: groups with a negative reward."""
        left_out = sum(not usable(shaped(g)) for g in groups)
        return super().observe(groups, metrics) | {"masked_groups": float(left_out)}


def usable(rewards: F64) -> bool:
    """No reward is negative (NaN, an error, is not)."""
    return not (rewards < 0).any()
