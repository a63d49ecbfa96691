"""FR3E (2507.07017): return to the places where a response was least certain, and explore from there.

    S_1 ... S_k: the k most uncertain places of the first chain, in order;   S_0: the prompt
    A_jm = exp(V(S_{j-1}) - V(S_j)) * (R_jm - mean_m R_jm) / (std_m R_jm + 1e-6);   V(S_j) = mean_m R_jm;  no exp at S_0

The recipe's `group` chains leave the prompt, `m` continuations each S_j. What a continuation shares with the chain is
not trained on again (the paper leaves it open). Prompts that are all right or all wrong: `keep: informative`.
Differs: uncertainty is the surprisal -log p(y_t) of the sampled token, not the entropy, which the sampler does not
give; places are `spacing` tokens apart, since several can fall into one word. k, m and the exact factor are not in what
could be read of the paper: reviews say k * m = 16. The standard deviation is the unbiased one; equal rewards give 0.
Fidelity: reconstructed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from rlvr.rollout.tree import F64, Grower, Tree
from rlvr.rollout.tree_method import TreeConfig, TreeMethod, branched
from rlvr.types import F32, Group


class Config(TreeConfig):
    """`k` 0 is plain sampling."""

    rows: Literal["path_dedup", "edge"] = "path_dedup"
    k: NonNegativeInt = 4
    m: PositiveInt = 4
    spacing: PositiveInt = 4  # tokens


class FR3E(TreeMethod):
    """Groups of continuations from uncertain places, weighed by the change of value between them."""

    kind = "fr3e"
    Config = Config

    @property
    def branches(self) -> bool:
        """Without places it is plain sampling."""
        return self.config.k > 0

    async def grown(self, group: Group, grower: Grower) -> Group:
        """`m` continuations from each place of the first chain, in one call."""
        base = group.trajectories[0]
        found = uncertain(base.logprobs[group.prompt_len :], k=self.config.k, spacing=self.config.spacing)
        places = [group.prompt_len + at for at in found]
        return await branched(group, [(0, at, f"{at}.{i}") for at in places for i in range(self.config.m)], grower)

    def values(self, group: Group, tree: Tree, rewards: F64) -> F64:
        """A node has the advantage of the row that it was sampled for."""
        states = [t.parent[1] if t.parent else group.prompt_len for t in group.trajectories]
        scalars = modulated(rewards, states)
        return np.array([0.0 if node.row < 0 else scalars[node.row] for node in tree.nodes])


def uncertain(logprobs: F32, *, k: int, spacing: int) -> list[int]:
    """The `k` places of smallest log-prob, `spacing` apart and not the first token, in order."""
    chosen: list[int] = []
    for at in np.argsort(logprobs, kind="stable"):
        if len(chosen) < k and at > 0 and np.isfinite(logprobs[at]) and all(abs(at - c) >= spacing for c in chosen):
            chosen.append(int(at))
    return sorted(chosen)


def alpha(change: float) -> float:
    """The factor of a state whose value is `change` above that of the state before."""
    return float(np.exp(-change))


def modulated(rewards: F64, states: list[int]) -> F64:
    """A [G] of rows grouped by the place that they start from; NaN rewards have no part. States without a value are
    passed over."""
    out = np.zeros_like(rewards)
    before: float | None = None
    for state in sorted(set(states)):
        mine = np.array([s == state for s in states]) & ~np.isnan(rewards)
        if not mine.any():
            continue
        some = rewards[mine]
        if len(some) > 1 and some.max() > some.min():
            factor = 1.0 if before is None else alpha(float(some.mean()) - before)
            out[mine] = factor * (some - some.mean()) / (some.std(ddof=1) + 1e-6)
        before = float(some.mean())
    return out
