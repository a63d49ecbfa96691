"""Pass@k training (2508.10751), analytic form: every subset of k of a group's N responses counts as one trial.

    rho = 1 - C(N-c, k) / C(N, k)        sigma = sqrt(rho (1 - rho))                    c of N are right
    A+  = (1 - rho) / sigma              A- = (1 - rho - C(N-c-1, k-1) / C(N-1, k-1)) / sigma

The sum over a group is 0. With k = 1 it is GRPO with the population standard deviation; with larger k a group that is
right often enough (N - c < k, or c = 0) gets 0, and hard prompts weigh most. N counts the rows that are not errors.
Rewards must be 0 or 1: shaping is refused where the recipe shows it, and a group in which another number turns up, or
in which errors leave fewer than k rows, is masked and counted (`masked_groups`).
Differs from the released code: no 1e-6 on sigma (where it would be 0 the advantage is 0).
Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveInt

from rlvr.advantages.base import F64, Estimator, shaped, spread
from rlvr.advantages.rows import masked
from rlvr.explore.base import AddOnConfig
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


def pass_at_k(rewards: F64, k: int) -> F64:
    """Rewards [G] of 0, 1 or NaN (an error, gets 0) -> advantages [G]. Needs at least k that are not NaN."""
    valid = ~np.isnan(rewards)
    right = valid & (rewards == 1)
    n, wrong = int(valid.sum()), int((valid & ~right).sum())
    if not 0 < wrong < n or wrong < k:
        return np.zeros(len(rewards))
    fail = comb(wrong, k) / comb(n, k)  # 1 - rho
    sigma = sqrt(fail * (1 - fail))
    below = fail - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)
    return np.where(valid, np.where(right, fail, below), 0.0) / sigma


class Config(AddOnConfig):
    """`k` of the pass@k that is trained for, below `group`. The paper uses 4 with groups of 8; 1 is plain GRPO."""

    k: PositiveInt = 4


class PassAtK(Estimator):
    """Analytic pass@k advantages."""

    kind = "pass_at_k"
    Config = Config

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row; a group that is not `usable` is masked."""
        k = self.config.k
        return [spread(g, pass_at_k(shaped(g), k)) if usable(shaped(g), k) else masked(g) for g in groups]

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A k that no group reaches, and rewards that are known not to be 0 or 1."""
        found = list(super().problems(recipe))
        if self.config.k >= recipe.group:
            why = "one subset of the whole group tells no row from another"
            found.append(f"got k = {self.config.k} with group: {recipe.group}, expected k < group: {why}")
        if recipe.overlong.kind == "shape" or (recipe.kl.coef and recipe.kl.where == "reward"):
            key = "overlong: {kind: shape}" if recipe.overlong.kind == "shape" else "kl: {where: reward}"
            found.append(f"counts rewards of exactly 0 and 1, and `{key}` makes others; take it out")
        return found

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`masked_groups`: with a reward that is not 0 or 1, or with fewer than k rows without error."""
        left_out = sum(not usable(shaped(g), self.config.k) for g in groups)
        return super().observe(groups, metrics) | {"masked_groups": float(left_out)}


def usable(rewards: F64, k: int) -> bool:
    """At least k rewards that are not NaN (an error), all of them 0 or 1."""
    kept = rewards[~np.isnan(rewards)]
    return len(kept) >= k and bool(np.isin(kept, (0, 1)).all())
