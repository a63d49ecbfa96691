"""Lite PPO ("Tricks or Traps?", 2508.08221): the mean of the group, the standard deviation of the whole batch.

    A_i = (R_i - mean_group R) / std_batch R                                            [G] each -> [G] each

std is the unbiased one of all rewards (not centred) of the step's rows that are neither errors nor untrained: one
number, so prompts keep their relative weight, and a nearly uniform group is not blown up. The method is this with the
token mean and the plain clip (`objective: {reduction: token}`), without KL, overlong filtering or a critic.
Which rewards the std is over follows TRL and ROLL. Ours: the batch is the whole step, not one mini-batch; no epsilon;
division only where raw scores differ somewhere in the step: shaping alone would be blown up to the size of a success.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, centred, shaped, spread
from rlvr.advantages.rows import counts, pooled, step_scores_differ
from rlvr.explore.base import AddOnConfig
from rlvr.types import Bool, Group


def lite_ppo(rewards: Sequence[F64], counted: Sequence[Bool], *, divide: bool = True) -> list[F64]:
    """Rewards of every group of the step, and which of them the std is over, [G] each -> advantages.

    Error rows (NaN) get 0 and enter nothing.
    """
    shifted = [centred(group) for group in rewards]
    kept = [group[count & ~np.isnan(group)] for group, count in zip(rewards, counted, strict=True)]
    count = sum(len(group) for group in kept)
    _, std = pooled(kept)
    if not divide or std == 0.0:
        return shifted
    return [group / (std * np.sqrt(count / (count - 1))) for group in shifted]


class Config(AddOnConfig):
    """Nothing to set."""


class LitePPO(Estimator):
    """Group mean, batch standard deviation."""

    kind = "lite_ppo"
    Config = Config

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row."""
        divide = step_scores_differ(groups)
        scalars = lite_ppo([shaped(group) for group in groups], [counts(g) for g in groups], divide=divide)
        return [spread(group, a) for group, a in zip(groups, scalars, strict=True)]
