"""Dr.GRPO's advantage (2503.20783): centred, not divided.

    A_i = R_i - mean R        over the valid rows of a group, on every token of row i        R, A [G]

Without the division a question counts by how far its answers differ, not alike whether it is easy or hard. The paper's
other half is the reduction: `objective: {reduction: constant}`. A group with fewer than two valid rows, or with equal
rewards, gives exactly 0. Fidelity: exact.
"""

from __future__ import annotations

from rlvr.advantages.base import F64, Estimator, centred, shaped
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group


class Config(AddOnConfig):
    """No options."""


class DrGrpo(Estimator):
    """A = R - mean."""

    kind = "dr_grpo"
    Config = Config

    def scalars(self, group: Group) -> F64:
        """See the module."""
        return centred(shaped(group))
