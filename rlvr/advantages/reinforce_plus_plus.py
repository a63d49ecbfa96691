"""REINFORCE++ (2501.03262): no group at all; token returns, whitened over all trained tokens of the batch.

    G_it = gamma^(n_i - 1 - t) R_i - kl_coef sum_{s >= t} gamma^(s - t) k1_is           k1 = log pi_old - log pi_ref
    A_it = (G_it - mean) / std                                                          [L] each, on trained tokens

Mean and std weigh every token of the step alike, so long responses weigh more; std is the population's. t counts a
row's trained tokens. With `kl_coef: 0` no reference model is loaded. It works with `group: 1`, and a group of equal
rewards does learn here: it is above or below the batch.
The std is OpenRLHF's (the authors'); verl's is unbiased. Ours: the batch is the whole step; no epsilon; the division is
left out where no raw scores differ in the step, as shaping alone would be blown up to the size of a success.
Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from rlvr.advantages.base import F64, Estimator, shaped
from rlvr.advantages.rows import pooled, scatter, step_scores_differ
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group, Trajectory

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


def token_returns(reward: float, kl: F64, *, gamma: float, kl_coef: float) -> F64:
    """G_t of one row: its reward at the last token, and the KL penalties from t on; k1 [n] -> [n]."""
    returns = reward * np.power(gamma, np.arange(len(kl) - 1.0, -1.0, -1.0), dtype=np.float64)
    if kl_coef:
        ahead = 0.0
        for t in range(len(kl) - 1, -1, -1):
            ahead = float(kl[t]) + gamma * ahead
            returns[t] -= kl_coef * ahead
    return returns


def whiten(rows: Sequence[F64], *, divide: bool = True) -> list[F64]:
    """(x - mean) / std over all numbers of ragged `rows` together; all 0 where they are equal."""
    mean, std = pooled(rows)
    if std == 0.0:
        return [np.zeros(len(row)) for row in rows]
    return [(row - mean) / (std if divide else 1.0) for row in rows]


class Config(AddOnConfig):
    """`gamma` discounts over tokens; `kl_coef` is the price of k1 in the reward, per nat (0: no reference model)."""

    gamma: float = Field(1.0, gt=0.0, le=1.0)
    kl_coef: NonNegativeFloat = 0.0


class ReinforcePlusPlus(Estimator):
    """Token returns, whitened over the batch."""

    kind = "reinforce_plus_plus"
    Config = Config
    fewest = 1

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        if config.kl_coef:  # only then does the run load a reference model
            self.needs = frozenset({"old_logp", "ref_logp"})

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """A number for every trained token."""
        returns = [self._returns(t, r) for g in groups for t, r in zip(g.trajectories, shaped(g), strict=True)]
        whitened = iter(whiten(returns, divide=step_scores_differ(groups)))
        return [scatter(g, [next(whitened) for _ in g.trajectories]) for g in groups]

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Two KL penalties in one reward."""
        if self.config.kl_coef and recipe.kl.coef and recipe.kl.where == "reward":
            return ["`kl_coef` puts the KL into the reward, and so does `kl: {where: reward}`: keep one"]
        return super().problems(recipe)

    def _returns(self, t: Trajectory, reward: float) -> F64:
        """Returns of a row's trained tokens; none where the verdict is an error."""
        where = t.weight != 0
        if np.isnan(reward):
            return np.zeros(0)
        c, kl = self.config, np.zeros(int(where.sum()))
        if c.kl_coef:
            old, ref = (t.streams[name][where].astype(np.float64) for name in ("old_logp", "ref_logp"))
            known = np.isfinite(old) & np.isfinite(ref)  # else the token is not in the loss, and costs nothing
            kl = np.subtract(old, ref, out=kl, where=known)
        return token_returns(float(reward), kl, gamma=c.gamma, kl_coef=c.kl_coef)
