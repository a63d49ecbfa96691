"""RLOO (2402.14740): the baseline of a row is the mean reward of the other rows of its group.

    A_i = R_i - 1/(G-1) sum_{j != i} R_j  =  G/(G-1) (R_i - mean R)                     [G] -> [G]

No division by a standard deviation, so groups of nearly equal rewards stay small. G counts the rows whose verdict is
not an error. Differs from the paper: it uses the plain REINFORCE loss; here the recipe's objective applies (with one
update a batch the clip is inert and both are the same). The paper's KL in the reward is the recipe's
`kl: {where: reward, estimator: k1}`.
Fidelity: exact.
"""

from __future__ import annotations

import numpy as np

from rlvr.advantages.base import F64, Estimator, centred, shaped
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group


def rloo(rewards: F64) -> F64:
    """Rewards [G] -> advantages [G]; NaN (an error) gets 0 and enters nothing. Fewer than two rows give 0."""
    count = int((~np.isnan(rewards)).sum())
    return centred(rewards) * (count / max(count - 1, 1))


class Config(AddOnConfig):
    """Nothing to set."""


class RLOO(Estimator):
    """The mean of the other rows as baseline."""

    kind = "rloo"
    Config = Config

    def scalars(self, group: Group) -> F64:
        """See the module."""
        return rloo(shaped(group))
