"""What tree methods share: chains of the recipe's sampler, branches grown on them, credit, and what it all cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveInt

from rlvr.errors import EngineError
from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample
from rlvr.rollout.tree import F64, Grower, Ledger, Rows, Stem, Tree, tokens_saved
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from rlvr.recipe import Recipe

KINDS = frozenset({"deep_search", "fr3e", "latr", "spo_tree", "treerl"})
OUTSIDE = ("ead", "exgrpo", "temperature_schedule")  # what these change of a draw holds for its branches too


class TreeConfig(AddOnConfig):
    """`rows`: how a tree is trained on; `budget`: tokens to decode for one prompt, null is no limit."""

    rows: Rows = "path"
    budget: PositiveInt | None = None


class TreeMethod(AddOn):
    """Base class: override `branches` (off: plain sampling, bit for bit), `grown` and `values`.

    The recipe's `group` is the number of chains that the tree starts from, and they are sampled as without it.
    """

    drop_zero = False  # nodes with advantage 0 are not trained on

    def chains(self, draw: Draw) -> int:
        """How many chains the recipe's sampler gives."""
        return draw.group

    def first(self, max_tokens: int) -> int | None:
        """Most tokens of the chains that it starts from, where they are no whole responses of `max_tokens`."""
        return None

    @property
    def branches(self) -> bool:
        """Whether the options ask for any branch at all."""
        raise NotImplementedError

    async def grown(self, group: Group, grower: Grower) -> Group:
        """The group with branches added (`branched`)."""
        raise NotImplementedError

    def values(self, group: Group, tree: Tree, rewards: F64) -> F64:
        """The advantage of every node; `rewards` [G] are shaped, NaN on rows in error."""
        raise NotImplementedError

    def credited(self, group: Group, tree: Tree, rewards: F64) -> Group:
        """The group with advantages: those of `values`, where it has nothing finer to say."""
        return tree.spread(group, np.nan_to_num(self.values(group, tree, rewards)))

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Two trees in one recipe; chains that the budget cannot pay; an estimator that samples by itself."""
        trees = [spec.kind for spec in recipe.explore if spec.kind in KINDS]
        found = [f"one tree method a recipe, got {', '.join(trees)}"] if len(trees) > 1 else []
        kinds = [spec.kind for spec in recipe.explore]
        inside = kinds[kinds.index(self.kind) + 1 :] if self.kind in kinds else []
        found += [
            f"{kind!r} stands behind it in explore, so branches are sampled without it: move it before {self.kind!r}"
            for kind in OUTSIDE
            if kind in inside
        ]
        need, budget = recipe.group * recipe.sampling.max_tokens, self.config.budget
        if budget is not None and budget < need:
            found.append(
                f"{self.kind!r}: budget is {budget} tokens, and the chains alone can take group * sampling.max_tokens "
                f"= {need}; raise the budget or lower the others"
            )
        if recipe.advantage.kind == "remax":
            found.append(f"{self.kind!r} gives the advantages itself: name another estimator than 'remax'")
        return found

    def sampler(self, sample: Sample) -> Sample:
        """Chains, then branches. A branching that fails in the engine leaves the group as it was, and is counted."""

        async def planted(draw: Draw) -> Group:
            return await self.planted(sample, draw) if self.branches else await sample(draw)

        return planted

    async def planted(self, sample: Sample, draw: Draw) -> Group:
        """The tree of one draw."""
        ctx = draw.ctx
        assert ctx is not None, "a tree is sampled within a run"
        ledger, failed = Ledger(self.config.budget), False
        first = self.first(draw.sampling.max_tokens)
        if number := self.chains(draw):
            group = await _chains(sample, replace(draw, group=number), ledger, most=first)
        else:
            group = Group(draw.task, draw.index, (), prompt_len=len(ctx.encode(draw.task)))
        draw = replace(draw, task=group.task)  # the sampler below may have taken another one
        grower = Grower(draw=draw, ctx=ctx, ledger=ledger, name=self.name, prompt_len=group.prompt_len)
        try:
            tree = await self.grown(group, grower)
        except (EngineError, TimeoutError):
            tree, failed = await _plain(group, sample, draw, ledger, whole=first is None), True
            if not len(tree):
                raise
        said = {
            "forks": sum(t.parent is not None for t in tree.trajectories),
            "decoded": ledger.spent,
            "refused": ledger.refused,
            "failed": failed,
        }
        return tree.with_(counts={**tree.counts, **{f"{self.name}/{key}": float(n) for key, n in said.items()}})

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Credit from the tree, in place of the estimator's, in every group with a branch of this method."""
        return [self._credited(group) if self._branched(group) else group for group in groups]

    def _branched(self, group: Group) -> bool:
        """Whether a branch of this method is in it still: guidance replaces rows."""
        return bool(group.counts.get(f"{self.name}/forks")) and any(t.parent for t in group.trajectories)

    def _credited(self, group: Group) -> Group:
        assert group.rewards is not None
        tree = Tree.of(group)
        rewards = np.where(group.valid, group.rewards, np.nan).astype(np.float64)
        credited = self.credited(group, tree, rewards)
        return tree.laid_out(credited, self.config.rows, drop_zero=self.drop_zero)

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: branches; `decoded`: tokens; `refused` branches; `failed`: groups whose branching failed.

        `saved`: tokens shared with a sibling, so not decoded again; `saved_share`: of the tokens of all rows.
        """
        names = {"active": "forks", "decoded": "decoded", "refused": "refused", "failed": "failed"}
        out = {k: sum(g.counts.get(f"{self.name}/{name}", 0.0) for g in groups) for k, name in names.items()}
        mine = [g for g in groups if g.counts.get(f"{self.name}/forks")]
        saved = float(sum(tokens_saved(g) for g in mine))
        whole = sum(t.response_len for g in mine for t in g.trajectories)
        return out | {"saved": saved, "saved_share": saved / whole if whole else 0.0}


async def _chains(sample: Sample, draw: Draw, ledger: Ledger, *, most: int | None = None) -> Group:
    """As many chains of a draw as the ledger can pay, of at most `most` tokens; at the least one, of what is left."""
    limit = min(most or draw.sampling.max_tokens, draw.sampling.max_tokens)
    paid = sum(ledger.reserve(limit) for _ in range(draw.group))
    if not paid:
        assert ledger.left, "a budget with nothing left pays no chain"
        limit, paid = ledger.left, int(ledger.reserve(ledger.left))
    group = await sample(replace(draw, group=paid, sampling=replace(draw.sampling, max_tokens=limit)))
    ledger.settle(paid * limit, min(sum(t.response_len for t in group.trajectories), paid * limit))
    return group


async def _plain(group: Group, sample: Sample, draw: Draw, ledger: Ledger, *, whole: bool) -> Group:
    """Plain responses in place of a tree that failed, where its chains are not yet those.

    What the ledger cannot pay any more stays what it is: a chain that was cut after its first piece.
    """
    done = len(group) if whole else 0
    if done == draw.group or ledger.left == 0:
        return group
    more = await _chains(sample, replace(draw, first=draw.first + done, group=draw.group - done), ledger)
    kept, cut = group.trajectories[:done], group.trajectories[done + len(more) :]
    return more.with_(trajectories=(*kept, *more.trajectories, *cut), counts={**group.counts, **more.counts})


async def branched(group: Group, places: Sequence[tuple[int, int, str]], grower: Grower) -> Group:
    """The group with a verified branch at each (row, token, path), in order, without those that cannot be grown."""
    stems = [Stem(group.trajectories[row], at, path) for row, at, path in places]
    rows = await grower.grow(stems)
    new = [replace(r, parent=(row, at)) for r, (row, at, _) in zip(rows, places, strict=True) if r is not None]
    return group.with_(trajectories=(*group.trajectories, *await grower.verified(new)))


def answer_begins(tokens: np.ndarray, grower: Grower, pattern: str) -> int:
    """The first place such that tokens[: place + 1], decoded, match `pattern`; their number when they never do."""
    import re

    def matches(n: int) -> bool:
        return re.search(pattern, grower.ctx.decode(tokens[:n])) is not None

    low, high = 0, len(tokens)  # tokens[:low] do not match; tokens[:high] do, if all do
    if not pattern or not matches(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if matches(middle) else (middle, high)
    return high - 1
