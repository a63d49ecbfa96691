"""PACS (2509.02522): predict each response's correctness from the policy's own log-ratios.

    s_i   = beta sum_t (logp - old_logp)                                      [rows]
    psi_i = s_i - mean_{j != i} s_j                                           over the group of row i
    L     = mean_i w_i BCE(sigmoid(psi_i), R_i),    R_i in {0, 1}

with w = n / (2 n_pos) on right and n / (2 n_neg) on wrong responses of a group of n (`balance`; 1 where all are alike).
The gradient goes through all of psi: dL/ds_i = sum_j w_j (sigmoid(psi_j) - R_j) dpsi_j/ds_i. At the old weights psi = 0
and it is REINFORCE with errors of one half, so it wants several updates a step. Differs from the released code:
log-ratios are summed over the trained tokens (the code forgets the mask), and no group has to share a micro-batch.
A row whose reward is neither 0 nor 1 is left out and counted. Advantages are not used. Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveFloat

from rlvr.explore.base import AddOnConfig, Update
from rlvr.surrogates.group import F64, Coefficients, GroupSurrogate, members, sequence_scores

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """`beta` scales the scores; `balance` weighs right and wrong responses of a group alike."""

    beta: PositiveFloat = 1.0
    balance: bool = True


class Pacs(GroupSurrogate):
    """loss = BCE of leave-one-out scores against correctness."""

    kind = "pacs"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    no_correction: ClassVar[str] = "it is a classifier's loss and no expectation over the sampler's tokens"

    def coefficients(self, update: Update) -> Coefficients:
        """See the module."""
        scores = self.config.beta * sequence_scores(update, "old_logp")
        slope, loss, odd = np.zeros(len(scores)), np.zeros(len(scores)), 0
        for group in members(update.rows):
            labels = np.array([update.rows[i].reward for i in group])
            binary = (labels == 0) | (labels == 1)
            odd += int((~binary).sum())
            at, right = group[binary], labels[binary]
            if len(at) > 1:
                slope[at], loss[at] = self._group(scores[at], right)
        return Coefficients(self.config.beta * slope, loss, {"rewards_not_binary": float(odd)})

    def _group(self, scores: F64, labels: F64) -> tuple[F64, F64]:
        n, positive = len(scores), labels.sum()
        psi = scores - (scores.sum() - scores) / (n - 1)
        weight = np.ones(n)
        if self.config.balance and 0 < positive < n:
            weight = np.where(labels == 1, n / (2 * positive), n / (2 * (n - positive)))
        error = weight * (1.0 / (1.0 + np.exp(-np.clip(psi, -500, 500))) - labels)
        slope = error - (error.sum() - error) / (n - 1)
        return slope, weight * (np.logaddexp(0.0, psi) - labels * psi)

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Rewards that cannot be 0 and 1."""
        found = list(super().problems(recipe))
        if recipe.overlong.kind == "shape" or (recipe.kl.coef > 0 and recipe.kl.where == "reward"):
            found.append("'pacs' needs rewards of 0 and 1: drop `overlong: shape` and the KL in the reward")
        return found
