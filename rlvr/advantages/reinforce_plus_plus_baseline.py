"""REINFORCE++-baseline (2501.03262): rewards centred in their group, then whitened over the batch's trained tokens.

    a_i = R_i - mean_group R
    A_i = (a_i - mean) / std         over the step's trained tokens, a_i once for each token     [G] each -> [G] each

Tokens are counted, not rows: a long response weighs more, and the mean is not 0, so a group of equal rewards (a = 0)
gets -mean/std, the same small number on all its rows. std is the population's. The paper's KL is a separate term of the
loss: `kl: {coef: 1e-4, estimator: k2}` (ProRLv2).
The std is OpenRLHF's (the authors'); verl's is unbiased. Ours: the batch is the whole step; no epsilon; division only
where the raw scores of some group differ, as shaping alone would be blown up to the size of a success.
Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, centred, shaped, spread
from rlvr.advantages.rows import centred_scores_differ, pooled, trained
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group


def reinforce_plus_plus_baseline(
    rewards: Sequence[F64], lengths: Sequence[Sequence[int]], *, divide: bool = True
) -> list[F64]:
    """Rewards [G] and trained tokens [G] of every group of the step -> advantages [G] each.

    Error rows (NaN) get 0 and enter nothing; where no reward differs within a group all is 0.
    """
    shifted = [centred(group) for group in rewards]
    counted = [
        np.broadcast_to(a, count)
        for group, values, counts in zip(rewards, shifted, lengths, strict=True)
        for reward, a, count in zip(group, values, counts, strict=True)
        if not np.isnan(reward)
    ]
    mean, std = pooled(counted)
    if std == 0.0:
        return [np.zeros_like(a) for a in shifted]
    scale = std if divide else 1.0
    return [np.where(np.isnan(r), 0.0, (a - mean) / scale) for r, a in zip(rewards, shifted, strict=True)]


class Config(AddOnConfig):
    """Nothing to set."""


class ReinforcePlusPlusBaseline(Estimator):
    """Group mean, then whitening over tokens."""

    kind = "reinforce_plus_plus_baseline"
    Config = Config

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row."""
        lengths = [[trained(t) for t in group.trajectories] for group in groups]
        divide = centred_scores_differ(groups)
        scalars = reinforce_plus_plus_baseline([shaped(group) for group in groups], lengths, divide=divide)
        return [spread(group, a) for group, a in zip(groups, scalars, strict=True)]
