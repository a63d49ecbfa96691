"""GRPO's group-relative advantage (2402.03300, section 4.1.2).

    A_i = (R_i - mean R) / (std R + eps)        over the valid rows of a group, on every token of row i        R, A [G]

The standard deviation is the unbiased one, as in verl and TRL (OpenRLHF's too); the paper does not say. `std: false`
leaves it out, which is Dr.GRPO's estimator. Differs: a group with fewer than two valid rows, or with equal rewards,
gives exactly 0 (verl gives a group of one its raw reward); where the **raw** scores of a group are all equal, what
shaping added is centred but not divided, so that a small bonus does not become a full-size advantage.
Fidelity: exact.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from rlvr.advantages.base import F64, Estimator, centred, scores_differ, shaped
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group


class Config(AddOnConfig):
    """`std`: divide by the group's standard deviation; `eps` is added to it."""

    std: bool = True
    eps: PositiveFloat = 1e-6


class Grpo(Estimator):
    """A = (R - mean) / (std + eps)."""

    kind = "grpo"
    Config = Config

    def scalars(self, group: Group) -> F64:
        """See the module."""
        rewards = shaped(group)
        scale = 1.0
        if self.config.std and scores_differ(group):
            scale = float(np.nanstd(rewards, ddof=1)) + self.config.eps
        return centred(rewards) / scale
