"""TBA, trajectory balance (2503.18929): fit the policy to the reference tilted by the reward.

    Delta_i = sum_t (logp - ref_logp)                                         [rows]
    log Z   = sg(mean_j (R_j / beta - Delta_j))                               over the group
    L       = mean_i (log Z + Delta_i - R_i / beta)^2

dL/dDelta_i = (2 / rows) (log Z + Delta_i - R_i / beta): REINFORCE with a mean baseline and the KL in the reward, times
2 / beta; valid for samples of any policy, so it takes no correction. Sums of log-probabilities: it scales with length.
Differs: the paper anneals beta from 0.014 to 0.004 over the run (here it is constant) and trains from a replay
buffer (here from the step's own groups); the released code steps after every micro-batch. Advantages are not used.
Fidelity: close.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import PositiveFloat

from rlvr.explore.base import AddOnConfig, Update
from rlvr.surrogates.group import Coefficients, GroupSurrogate, members, sequence_scores


class Config(AddOnConfig):
    """`beta`: reward units per nat of divergence from the reference."""

    beta: PositiveFloat = 0.014


class Tba(GroupSurrogate):
    """loss = (log Z + Delta - R / beta)^2."""

    kind = "tba"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})
    off_policy: ClassVar[bool] = True
    no_correction: ClassVar[str] = "trajectory balance holds for samples of any policy"

    def coefficients(self, update: Update) -> Coefficients:
        """See the module."""
        delta = sequence_scores(update, "ref_logp")
        residual, log_z = np.zeros(len(delta)), []
        for at in members(update.rows):
            if len(at) > 1:
                tilted = delta[at] - np.array([update.rows[i].reward for i in at]) / self.config.beta
                log_z.append(-tilted.mean())
                residual[at] = tilted - tilted.mean()
        return Coefficients(2.0 * residual, residual**2, {"log_z": float(np.mean(log_z)) if log_z else 0.0})
