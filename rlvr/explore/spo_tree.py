"""SPO-tree (2505.23564): every segment of a tree is credited with what it changed.

    V(leaf) = R;   V(s) = mean of V over the children of s;   A(s) = V(s) - V(parent)                 V [nodes]

The recipe's `group` segments of `segment` tokens leave the prompt; `factors` continue each unfinished one, level by
level, the last level to the end. Each segment is a training row of its own (`rows: edge`), on everything before it, so
each token is trained on once; segments with A = 0 are not trained on. Advantages along a path add up to R - V(root).
`std: true` divides by the standard deviation (population) of V among siblings.
Differs from the released code: no buffer of edges over iterations; the recipe's objective, on every token of an edge
(the probability mask is SPO-chain's). A segment that the budget cannot continue is scored as it stands, as a truncated
response is.
Fidelity: close.
"""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from rlvr.rollout.tree import F64, Grower, Rows, Stem, Tree, Twig, linked
from rlvr.rollout.tree_method import TreeConfig, TreeMethod
from rlvr.types import Group


class Config(TreeConfig):
    """The paper's 6-6-6 is `group: 6` with the defaults here; no factors is plain sampling."""

    rows: Rows = "edge"
    factors: tuple[PositiveInt, ...] = (6, 6)
    segment: PositiveInt = 30  # tokens; the paper takes 600 where responses are long
    std: bool = False


class SpoTree(TreeMethod):
    """Segment advantages from a tree with fixed factors."""

    kind = "spo_tree"
    Config = Config
    drop_zero = True

    @property
    def branches(self) -> bool:
        """Without factors it is plain sampling."""
        return bool(self.config.factors)

    def first(self, max_tokens: int) -> int:
        """The first segments are no whole responses."""
        return self.config.segment

    async def grown(self, group: Group, grower: Grower) -> Group:
        """Level by level, one call each; leaves in the order of their paths."""
        limit = grower.prompt_len + grower.draw.sampling.max_tokens
        leaves: list[Twig] = []
        live = [Twig(t, (i,), (len(t.tokens),)) for i, t in enumerate(group.trajectories)]
        for level, factor in enumerate(self.config.factors):
            leaves += [twig for twig in live if twig.finished(limit)]
            stems = [twig for twig in live if not twig.finished(limit) for _ in range(factor)]
            names = [".".join(map(str, (*twig.path, i % factor))) for i, twig in enumerate(stems)]
            last = level == len(self.config.factors) - 1
            asked = [Stem(t.row, len(t.row.tokens), name) for t, name in zip(stems, names, strict=True)]
            rows = await grower.grow(asked, most=None if last else self.config.segment)
            pairs = list(zip(stems, rows, strict=True))
            live = [twig.with_piece(i % factor, row) for i, (twig, row) in enumerate(pairs) if row is not None]
            continued = {twig.path[:-1] for twig in live}
            leaves += [t for path, t in {t.path: t for t in stems}.items() if path not in continued]
        leaves = sorted([*leaves, *live], key=lambda twig: twig.path)
        return group.with_(trajectories=tuple(await grower.verified(linked(leaves))))

    def values(self, group: Group, tree: Tree, rewards: F64) -> F64:
        """See the module."""
        return segment_advantages(tree, rewards, std=self.config.std)


def segment_advantages(tree: Tree, rewards: F64, *, std: bool = False) -> F64:
    """V(s) - V(parent) of every node, over the standard deviation of its siblings' V if asked for."""
    value = tree.nested_means(rewards)
    out = tree.minus_parent(value)
    if not std:
        return out
    siblings: dict[int, list[float]] = {}
    for n, node in enumerate(tree.nodes):
        siblings.setdefault(node.parent, []).append(value[n])
    spread = {
        parent: float(np.nanstd(values)) if np.isfinite(values).any() else 0.0 for parent, values in siblings.items()
    }
    return np.array(
        [
            a / spread[node.parent] if spread[node.parent] > 1e-12 else 0.0
            for a, node in zip(out, tree.nodes, strict=True)
        ]
    )
