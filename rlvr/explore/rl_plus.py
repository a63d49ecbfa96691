"""RL-PLUS (2508.00222): a demonstration in every group, weighed by multiple importance sampling, more where it is new.

    r_t = 2 pi_t / (pi_omega + pi_old),  pi_omega = (pi_old + 1) / 2         pi at the demonstration's tokens [B,T]
    A^c_t = A (1 - sg[pi_t])^gamma                                  A: the recipe's estimator over all G rows
    l_t = -A^c_t r_t   at the demonstration's tokens; all others keep the recipe's objective

The teacher's probability is unknown: the estimate mixes pi_old with 1, as the released code has it (1/V in place of 1
makes every weight 4/3 and down-weighs nothing). The denominator is at least 1/2, so r <= 4 pi; no clip applies.
Demonstrations enter as LUFFY's do: random ones that the verifier accepts, in the last places. The whole token loss
so far is replaced there. The paper divides by the standard deviation (`advantage: grpo`), the code does not
(`dr_grpo`); the code also takes the clip of sampled tokens out; its sums are divided by a constant per micro-batch,
here the objective's reduction is global. `demos: 0` turns it off.
Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt

from rlvr.explore.base import AddOnConfig
from rlvr.objectives.off_policy import multiple_importance, unexplored
from rlvr.rollout.guidance import Demonstrated

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`demos` of the group's rows are demonstrations; `gamma` is the power of 1 - pi."""

    demos: NonNegativeInt = 1
    gamma: NonNegativeFloat = 0.5


class RLPlus(Demonstrated):
    """The last `demos` rows become demonstrations; loss = -A (1 - pi)^gamma r on them."""

    kind = "rl_plus"
    Config = Config

    def demo_loss(self, view: TokenView) -> Tensor:
        """-A^c r, [B,T]."""
        advantages = view.advantages * unexplored(view.logp, gamma=self.config.gamma)
        return -advantages * multiple_importance(view.logp, view.old_logp)
