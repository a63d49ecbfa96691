"""Magistral (2506.10910): rewards centred in their group, then divided by their standard deviation over the batch.

    a_i = R_i - mean_group R        A_i = a_i / std_batch a                             [G] each -> [G] each

The mean of a over the batch is 0, since that of each group is; std is the population's, over the step's rows that are
neither errors nor untrained. With equal lengths it is REINFORCE++-baseline, which counts tokens instead of rows. The
paper's other parts are recipe keys: `objective: {high: 0.28, reduction: token}`, `keep: informative` and no KL.
Known to us from summaries. Ours: the batch is the whole step (the paper: one mini-batch); no epsilon; division only
where the raw scores of some group differ, as shaping alone would be blown up to the size of a success.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvr.advantages.base import F64, Estimator, centred, shaped, spread
from rlvr.advantages.rows import centred_scores_differ, counts, pooled
from rlvr.explore.base import AddOnConfig
from rlvr.types import Bool, Group


def magistral(rewards: Sequence[F64], counted: Sequence[Bool], *, divide: bool = True) -> list[F64]:
    """Rewards of every group of the step, and which of them the std is over, [G] each -> advantages.

    Error rows (NaN) get 0 and enter nothing.
    """
    shifted = [centred(group) for group in rewards]
    _, std = pooled([a[n & ~np.isnan(group)] for a, n, group in zip(shifted, counted, rewards, strict=True)])
    return [group / std for group in shifted] if divide and std > 0.0 else shifted


class Config(AddOnConfig):
    """Nothing to set."""


class Magistral(Estimator):
    """Group mean, then the standard deviation of the centred batch."""

    kind = "magistral"
    Config = Config

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row."""
        divide = centred_scores_differ(groups)
        scalars = magistral([shaped(group) for group in groups], [counts(g) for g in groups], divide=divide)
        return [spread(group, a) for group, a in zip(groups, scalars, strict=True)]
