"""AMPO (2510.02227): where a whole group fails, demonstrations of several teachers take the place of wrong answers.

    no response of the group is right:  k = min(demos, usable demonstrations) random places get k of them
    any is right:                       the group stays as it is, bit for bit
    l_t = -A f(pi_t)   at their tokens,   f(p) = p / (p + gamma)     A: the recipe's estimator over the group [B,T]

Not the paper's: **which** demonstrations. It ranks them by how likely the policy finds the right answer after each
(comprehension, 0.9 mean pi(answer) + 0.1 format), which takes a forward pass of the policy while groups are collected;
here they are random among those that the verifier accepts. The paper averages the loss of a demonstration over
its tokens, here as in the released code the reduction is the objective's. Only failures trigger; the code's "always"
is LUFFY. The whole token loss so far is replaced at the demonstrations' tokens. `demos: 0` turns it off.
Fidelity: reconstructed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.objectives.off_policy import shaped_probability
from rlvr.rollout.guidance import Demonstrated, Demonstrations, all_wrong, order_of
from rlvr.types import Group, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """At most `demos` of the rows of a failed group become demonstrations; `gamma` of the shaping."""

    demos: NonNegativeInt = 2
    gamma: PositiveFloat = 0.1


class AMPO(Demonstrated):
    """Up to `demos` random wrong rows of a failed group become demonstrations; loss = -A f(pi) on them."""

    kind = "ampo"
    Config = Config

    def wanted(self, group: Group) -> bool:
        """Nothing in it is right."""
        return all_wrong(group)

    def placed(self, group: Group, found: Demonstrations, seed: int) -> dict[int, Trajectory]:
        """Random demonstrations at random wrong places."""
        picked = order_of(group, len(found.rows), seed=seed, purpose=f"{self.name}/demos")[: self.config.demos]
        wrong = np.flatnonzero(group.judged)  # what others put in stays
        order = order_of(group, len(wrong), seed=seed, purpose=f"{self.name}/places")
        return {int(wrong[place]): found.rows[pick] for place, pick in zip(order, picked, strict=False)}

    def demo_loss(self, view: TokenView) -> Tensor:
        """-A f(pi), [B,T]."""
        return -view.advantages * shaped_probability(view.logp, gamma=self.config.gamma)
