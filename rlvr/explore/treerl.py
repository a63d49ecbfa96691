"""TreeRL, EPTree (2506.11902): branch where a token surprised, and let success below a node be its reward.

    u_t = -log p(y_t);  of every chain's tree the n largest, t continuations each from tokens[:t], l rounds
    A(s) = ((V(s) - V(root)) + (V(s) - V(parent))) / sqrt(L(s))            for every token of node s      V, L [nodes]

`group` chains become group * (1 + n l t) leaves. A token is resampled, not kept, where a branch begins; no branch
begins at the first token of another branch, nor after the answer (`answer`, a regular expression on the text so far).
`form` takes the released code's credit instead: rewards less the mean of the other leaves', A = (V - V(parent), where
that is 0 the one before it) + V, with `leave_one_out_sqrt` V / sqrt(L) in V's place.
Differs from the paper: the recipe's objective; every leaf is trained on (there 16 of 30). From the released code: a
branch never exceeds the response limit, a place is used once, and its choice by farthest positions is left out; a leaf
that was cut has the reward that its verifier (and `overlong`) gives it, there 0.
Fidelity: close.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from rlvr.rollout.tree import F64, Grower, Tree
from rlvr.rollout.tree_method import TreeConfig, TreeMethod, answer_begins, branched
from rlvr.types import Group

Form = Literal["paper", "leave_one_out", "leave_one_out_sqrt"]


class Config(TreeConfig):
    """The paper's 6/2/1/2 is `group: 6` with the defaults here."""

    n: NonNegativeInt = 2  # places in each chain's tree and round; 0 is plain sampling
    l: NonNegativeInt = 1  # rounds  # noqa: E741
    t: NonNegativeInt = 2  # branches from each place
    form: Form = "paper"
    answer: str = r"(?i)answer|conclusion|\\boxed"  # empty: branches begin anywhere


class TreeRL(TreeMethod):
    """EPTree with process rewards from the tree."""

    kind = "treerl"
    Config = Config

    @property
    def branches(self) -> bool:
        """Without places, rounds or branches it is plain sampling."""
        return bool(self.config.n and self.config.l and self.config.t)

    async def grown(self, group: Group, grower: Grower) -> Group:
        """`l` rounds; each is one call for all chains."""
        roots = list(range(len(group)))  # of each row, its chain
        used: set[tuple[int, int]] = set()
        for level in range(self.config.l):
            places = self._places(group, roots, used, grower)
            used.update(places)
            before = len(group)
            copies = [(row, at, f"{level}.{row}.{at}.{k}") for row, at in places for k in range(self.config.t)]
            group = await branched(group, copies, grower)
            roots += [roots[t.parent[0]] for t in group.trajectories[before:] if t.parent]
        return group

    def _places(
        self, group: Group, roots: list[int], used: set[tuple[int, int]], grower: Grower
    ) -> list[tuple[int, int]]:
        """(row, token): the `n` most surprising of each chain's tree, the earlier one first among equals."""
        found: dict[int, list[tuple[float, int, int]]] = {}
        for row, t in enumerate(group.trajectories):
            first = group.prompt_len if t.parent is None else t.parent[1] + 1
            end = group.prompt_len + answer_begins(t.tokens[group.prompt_len :], grower, self.config.answer)
            for at in range(first, min(end + 1, len(t.tokens))):
                if np.isfinite(t.logprobs[at]) and (row, at) not in used:
                    found.setdefault(roots[row], []).append((float(t.logprobs[at]), row, at))
        return [(row, at) for some in found.values() for _, row, at in sorted(some)[: self.config.n]]

    def values(self, group: Group, tree: Tree, rewards: F64) -> F64:
        """See the module."""
        return eptree(tree, rewards) if self.config.form == "paper" else leave_one_out(tree, rewards, self.config.form)


def eptree(tree: Tree, rewards: F64) -> F64:
    """The paper's reward of every node."""
    value, count = tree.means(rewards), tree.leaves(~np.isnan(rewards))
    return ((value - value[0]) + tree.minus_parent(value)) / np.sqrt(np.maximum(count, 1))


def leave_one_out(tree: Tree, rewards: F64, form: Form) -> F64:
    """The released code's; of fewer than two leaves without error, 0."""
    known = ~np.isnan(rewards)
    if known.sum() < 2:
        return np.zeros(len(tree.nodes))
    others = (np.nansum(rewards) - rewards) / (known.sum() - 1)
    value = tree.means(rewards - others)
    if form == "leave_one_out_sqrt":
        value = value / np.sqrt(np.maximum(tree.leaves(known), 1))
    local = tree.minus_parent(value)
    for n, node in enumerate(tree.nodes):
        if n and abs(local[n]) < 1e-12:
            local[n] = local[node.parent]
    return local + value
