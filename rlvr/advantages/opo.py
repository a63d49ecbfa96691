"""OPO (2505.23585): the baseline is the group's reward, weighted by the length of the responses.

    b = sum_i |y_i| R_i / sum_i |y_i|        A_i = R_i - b                              [G] -> [G]

The optimal baseline under the assumption that the squared gradient of a response grows with its length: long responses
move the baseline towards their own reward. |y_i| counts the trained tokens; with equal lengths it is Dr.GRPO's.
The paper is strictly on-policy: one update a batch, no KL and no entropy bonus (`minibatches: 1`).
Fidelity: exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, shaped, silent
from rlvr.advantages.rows import trained
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group


def opo(rewards: F64, lengths: Sequence[int]) -> F64:
    """Rewards [G] and trained tokens [G] -> advantages [G]; error rows (NaN), equal rewards and no tokens give 0."""
    sizes, valid = np.asarray(lengths, dtype=np.float64), ~np.isnan(rewards)
    total = sizes[valid].sum()  # of integers: exact
    if silent(rewards) or not total:
        return np.zeros_like(rewards)
    baseline = math.fsum(rewards[valid] * sizes[valid]) / total
    return np.where(valid, rewards - baseline, 0.0)


class Config(AddOnConfig):
    """Nothing to set."""


class OPO(Estimator):
    """The length-weighted mean as baseline."""

    kind = "opo"
    Config = Config

    def scalars(self, group: Group) -> F64:
        """See the module."""
        return opo(shaped(group), [trained(t) for t in group.trajectories])
