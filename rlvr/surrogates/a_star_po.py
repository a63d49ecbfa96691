"""A*-PO (2505.20686): regress the log-ratio to the reference on the optimal advantage.

    V*(x) = beta1 log mean_{j <= n} exp(R_j / beta1)                          R_j: n responses of the reference to x
    L     = mean_i (beta2 sum_t (logp - ref_logp) - (R_i - V*(x_i)))^2        [rows]

V* is estimated once, before the first step: `n` responses of the initial policy, which is the reference, to **every**
training task, sampled as in training and verified (`objective/values` counts the tasks; the table is in the
checkpoint). So it costs n times the tasks in samples; choose the training data accordingly. On-policy, and one response
a prompt is enough: `group: 1` works, with `keep: all`. A task whose reference responses all ended in errors has no V*;
its rows are left out and counted. Where the reference never succeeds V* = 0. Differs: the paper's filter of tasks that
the reference never solves (off there) is not here. Advantages are not used. Fidelity: exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from rlvr.explore.base import AddOnConfig, Context, Update
from rlvr.seeds import stable_seed
from rlvr.surrogates.group import Coefficients, GroupSurrogate, members, sequence_scores
from rlvr.types import Metrics, Request, Task

if TYPE_CHECKING:
    from rlvr.recipe import Recipe

AT_ONCE = 256  # tasks in flight while V* is estimated


class Config(AddOnConfig):
    """`beta1` of V* (0: the mean reward), `beta2` of the regression, `n` reference responses a task."""

    beta1: NonNegativeFloat = 0.5
    beta2: PositiveFloat = 1e-3
    n: PositiveInt = 8


class AStarPo(GroupSurrogate):
    """loss = (beta2 log-ratio - (R - V*))^2."""

    kind = "a_star_po"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})
    fewest: ClassVar[int] = 1
    no_correction: ClassVar[str] = "it is a regression on the policy's own samples"

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.values: dict[str, float] = {}  # V* by task id

    async def prepare(self, ctx: Context) -> None:
        """V* of every training task."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(task: Task) -> tuple[str, float | None]:
            async with gate:
                return task.key, optimal_value(await self._rewards(task, ctx), beta=self.config.beta1)

        found = await asyncio.gather(*(one(task) for task in ctx.tasks))
        self.values = {name: value for name, value in found if value is not None}

    async def _rewards(self, task: Task, ctx: Context) -> list[float]:
        prompt = ctx.encode(task)
        keys = [f"{self.name}/{task.key}/{i}" for i in range(self.config.n)]
        seeds = [stable_seed(self.seed, key) % 2**31 for key in keys]
        requests = [Request(k, prompt, replace(ctx.sampling, seed=s)) for k, s in zip(keys, seeds, strict=True)]
        done = await ctx.generate(requests)
        verdicts = await ctx.verify(task, [ctx.decode(c.tokens) for c in done])
        return [v.score for v in verdicts if v.error is None]

    def coefficients(self, update: Update) -> Coefficients:
        """See the module."""
        log_ratio = self.config.beta2 * sequence_scores(update, "ref_logp")
        residual, without = np.zeros(len(log_ratio)), 0
        for i in (int(i) for at in members(update.rows) for i in at):
            row = update.rows[i]
            if row.task in self.values:
                residual[i] = log_ratio[i] - (row.reward - self.values[row.task])
            else:
                without += 1
        slope = 2.0 * self.config.beta2 * residual
        return Coefficients(slope, residual**2, {"rows_without_value": float(without)})

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Rewards that V* does not know, and a reference that leaves the one V* was estimated with."""
        shaped = recipe.overlong.kind == "shape" or (recipe.kl.coef > 0 and recipe.kl.where == "reward")
        moves = recipe.reference.update != "never"
        why = "compares rewards with values that were estimated once, from the raw scores of the first reference"
        drop = ["`overlong: shape` and the KL in the reward"] * shaped + ["`reference.update`"] * moves
        more = [f"'a_star_po' {why}: drop {' and '.join(drop)}"] if drop else []
        return [*super().problems(recipe), *more]

    def observe(self, groups: Sequence[Any], metrics: Metrics) -> Metrics:
        """How many tasks have a V*, and its mean."""
        values = list(self.values.values())
        return {"values": float(len(values)), "value_mean": float(np.mean(values)) if values else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """The table."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.values = {name: float(value) for name, value in state["values"].items()}


def optimal_value(rewards: Sequence[float], *, beta: float) -> float | None:
    """beta log mean exp(R / beta); the mean where beta is 0; None without rewards."""
    kept = np.array([r for r in rewards if isfinite(r)], dtype=np.float64)
    if not len(kept):
        return None
    if beta == 0:
        return float(kept.mean())
    top = kept.max()
    return float(top + beta * np.log(np.mean(np.exp((kept - top) / beta))))
