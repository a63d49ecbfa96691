"""LUFFY (2504.14945): a demonstration among the responses to every prompt, its tokens weighed by a shaped probability.

    group = {y_1 .. y_(G-n)} from the policy, {z_1 .. z_n} demonstrations        A: the recipe's estimator over all G
    l_t = -A f(pi_t)   at the demonstration's tokens,     f(p) = p / (p + gamma),     pi_t = pi(z_t | x, z_<t)  [B,T]

The teacher's probability is unknown and taken as 1; f keeps a gradient where pi is small (its slope is largest at
pi = gamma) and no clip applies. All other tokens keep the recipe's objective. The whole token loss so far is replaced
at demonstration tokens, also a KL in the loss and what add-ons listed **before** this one added there.
Which demonstration, where a task has several: a random one that its verifier accepts. It takes the last place of the
group, a place that does not depend on rewards. A task without one keeps its G responses.
The paper's estimator divides by the standard deviation (`advantage: grpo`), the released code does not
(`advantage: dr_grpo`); the paper keeps the clip for sampled tokens, the released code takes it out; its sums are
divided by a constant per micro-batch, here the objective's reduction is global. `demos: 0` turns it off.
Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.objectives.off_policy import shaped_probability
from rlvr.rollout.guidance import Demonstrated

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`demos` of the group's rows are demonstrations; `gamma` of the shaping."""

    demos: NonNegativeInt = 1
    gamma: PositiveFloat = 0.1


class Luffy(Demonstrated):
    """The last `demos` rows become demonstrations; loss = -A f(pi) on them."""

    kind = "luffy"
    Config = Config

    def demo_loss(self, view: TokenView) -> Tensor:
        """-A f(pi), [B,T]."""
        return -view.advantages * shaped_probability(view.logp, gamma=self.config.gamma)
