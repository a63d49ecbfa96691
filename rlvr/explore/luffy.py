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

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveFloat

from rlvr.errors import ConfigError
from rlvr.explore.base import AddOn, AddOnConfig, Context, Knobs, Update
from rlvr.objectives.off_policy import shaped_probability
from rlvr.rollout.guidance import (
    demonstrations,
    foreign,
    order_of,
    temperature_of,
    told,
    with_demonstration,
    with_rows,
)
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """`demos` of the group's rows are demonstrations; `gamma` of the shaping."""

    demos: NonNegativeInt = 1
    gamma: PositiveFloat = 0.1


class Luffy(AddOn):
    """The last `demos` rows become demonstrations; loss = -A f(pi) on them."""

    kind = "luffy"
    Config = Config
    selects: ClassVar[bool] = True

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A group needs a response of the policy."""
        if self.config.demos < recipe.group:
            return []
        return [f"demos: {self.config.demos} leaves no response of the policy in a group of {recipe.group}; lower it"]

    async def prepare(self, ctx: Context) -> None:
        """Raises ConfigError where no task has a demonstration that fits."""
        if self.config.demos and not with_demonstration(ctx.tasks, ctx):
            raise ConfigError(
                f"explore: {self.name} learns from demonstrations, and no training task has one of at most "
                f"sampling.max_tokens={ctx.sampling.max_tokens} tokens. Choose a dataset with demonstrations."
            )

    async def guide(self, group: Group, ctx: Context) -> Group:
        """The group with its last rows replaced."""
        if not self.config.demos:
            return group
        found = await demonstrations(group.task, ctx, source=self.name, temperature=temperature_of(group))
        order = order_of(group, len(found.rows), seed=ctx.seed, purpose=self.name)[: self.config.demos]
        rows = {len(group) - 1 - i: found.rows[pick] for i, pick in enumerate(order)}
        notes = {f"{self.name}/demos": float(len(rows)), f"{self.name}/without": float(not rows)}
        return with_rows(group, rows, notes | found.noted(self.name))

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at the demonstrations' tokens; `active` counts them."""
        if not self.config.demos:
            return None
        marks = foreign(update.rows, self.name)
        return Knobs(marks=marks, metrics={"active": float(sum(mark.sum() for mark in marks))})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """-A f(pi) at marked tokens."""
        if view.mark is None:
            return loss
        return torch.where(
            view.mark > 0, -view.advantages * shaped_probability(view.logp, gamma=self.config.gamma), loss
        )

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`demos` put in, groups `without` one, and how many were `dropped_` for which reason."""
        return told(groups, self.name) if self.config.demos else {}
