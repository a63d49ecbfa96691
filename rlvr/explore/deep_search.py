"""DeepSearch (2509.25454): a tree search over chunks of a response, credit from its values, solved prompts remembered.

    leaf: v = 2 R - 1;  on the way to it, at depth d of D:  new = max((d + 1) / (D + 1), 0.1) * v
    q <- q + new  where the signs agree,   q <- new  where q < 0 < new,   else q stays
    A = (tanh q of the token's chunk; in the last chunk v) - mean of v over the group                     per token

A response is at most `depth` chunks. A chunk is continued by `width` others; the search goes down by Q/N +
`uct` sqrt(ln N_parent / N) until an end is found, of which one a time counts (right before wrong before unfinished,
then the surest), and goes on from the best node of the whole tree, by 0.4 tanh(Q_parent) + 0.01 sqrt(d / depth). It
stops at the recipe's `group` ends, or after `expansions`: then the best open nodes are written to their end in one go,
so a draw has `group` rows whatever happens, but for what the ledger refuses (counted). Credit is recomputed from the
rows and their order. `cache`: right responses of a prompt with at most a quarter of the policy's own right replace the
first rows of its next, plain draw, with the log-probs and temperatures that they were sampled with.
Differs from the released code: the bound and the ledger; the recipe's objective and overlong penalty; a cached response
keeps its behaviour log-probs (there it counts as on-policy); no rounds of filtered data: `keep: informative`. The
uncertainty bonus, off there, is left out.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from rlvr.explore.base import Draw, Sample
from rlvr.rollout.replay import Entry, ReplayStore, counted, replayed, unusable
from rlvr.rollout.tree import F64, Grower, Stem, Tree, Twig, linked
from rlvr.rollout.tree_method import TreeConfig, TreeMethod
from rlvr.types import Group, Metrics, Origin, Trajectory

HARD = 0.25  # share of right responses up to which they are remembered


class Config(TreeConfig):
    """`depth` 1 is plain sampling."""

    depth: PositiveInt = 64  # chunks of a response
    width: PositiveInt = 8
    uct: NonNegativeFloat = 2.0
    expansions: PositiveInt = 64  # of one draw
    cache: bool = True


class DeepSearch(TreeMethod):
    """Monte Carlo tree search in place of independent responses."""

    kind = "deep_search"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.store = ReplayStore()  # right responses of hard prompts

    @property
    def branches(self) -> bool:
        """A single chunk is plain sampling."""
        return self.config.depth > 1

    def first(self, max_tokens: int) -> int:
        """The chunks that leave the prompt."""
        return -(-max_tokens // self.config.depth)

    async def planted(self, sample: Sample, draw: Draw) -> Group:
        """A search; of a prompt with remembered solutions a plain group that begins with them."""
        known = self.store.of(draw.task.key)
        if not known:
            return await super().planted(sample, draw)
        assert draw.ctx is not None, "a tree is sampled within a run"
        prompt = draw.ctx.encode(draw.task)
        fit = [e for e in known if unusable(e.row, prompt=prompt, decode=draw.ctx.decode) is None]
        group = await sample(draw) if fit else await super().planted(sample, draw)
        cached = replayed(fit, source=self.name)[: len(group) - 1]
        rows = (*cached, *group.trajectories[len(cached) :])
        said = {f"{self.name}/replayed": len(cached), f"{self.name}/refused_rows": len(known) - len(fit)}
        return group.with_(trajectories=rows, counts={**group.counts, **{key: float(n) for key, n in said.items()}})

    async def grown(self, group: Group, grower: Grower) -> Group:
        """The ends of the search, in the order in which they were counted."""
        search = Search(self.config, grower, chunk=self.first(grower.draw.sampling.max_tokens))
        rows = linked([node.twig for node in await search.run(group.trajectories)])
        counts = {f"{self.name}/chunk": float(search.chunk), f"{self.name}/expansions": float(search.expansions)}
        return group.with_(trajectories=rows, counts={**group.counts, **counts})

    def credited(self, group: Group, tree: Tree, rewards: F64) -> Group:
        """See the module."""
        scores = token_scores(group, tree, 2 * rewards - 1, chunk=int(group.counts[f"{self.name}/chunk"]))
        mean = float(np.nanmean(2 * rewards - 1)) if (~np.isnan(rewards)).any() else 0.0
        rows = zip(scores, group.trajectories, group.valid, strict=True)
        return group.with_(
            advantages=tuple(np.where((t.weight != 0) & ok, s - mean, 0).astype(np.float32) for s, t, ok in rows)
        )

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Remembers solutions of hard prompts. `replayed` rows, `refused_rows`; `cached` prompts; `expansions`."""
        for group in groups if self.config.cache else ():
            self._remember(group)
        said = {key: counted(groups, self.name, key) for key in ("replayed", "refused_rows", "expansions")}
        return super().observe(groups, metrics) | said | {"cached": float(len(self.store.tasks))}

    def _remember(self, group: Group) -> None:
        """The policy's own right responses, where they are few; what was remembered is no news of the prompt."""
        mine, task = group.judged, group.task.key
        right = group.correct & mine
        share = float(right[mine].mean()) if mine.any() else 0.0
        if share > 0 or group.counts.get(f"{self.name}/refused_rows"):
            self.store.evict(task=task)
        for t, ok in zip(group.trajectories, right, strict=True):
            if ok and share <= HARD:
                self.store.add(Entry(task=task, step=int(t.version.max()), row=t))

    def state_dict(self) -> dict[str, Any]:
        """The remembered solutions."""
        return {"solved": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.store.load_state_dict(state["solved"])


@dataclass(eq=False)
class SearchNode:
    """One chunk of one partial response. `end`: nothing follows, and its row has a verdict."""

    twig: Twig
    parent: SearchNode | None
    end: bool = False
    value: float = 0.0
    visits: int = 0
    children: list[SearchNode] = field(default_factory=list)
    expanded: bool = False

    @property
    def depth(self) -> int:
        """Chunks from the root."""
        return len(self.twig.path)

    @property
    def quality(self) -> float:
        """Q: value per visit."""
        return self.value / max(self.visits, 1)


class Search:
    """The search of one draw."""

    def __init__(self, config: Config, grower: Grower, *, chunk: int) -> None:
        self.config, self.grower, self.chunk = config, grower, chunk
        self.limit = grower.prompt_len + grower.draw.sampling.max_tokens
        self.nodes: list[SearchNode] = []
        self.ends: list[SearchNode] = []
        self.waiting: list[SearchNode] = []  # ends that do not count yet
        self.expansions = 1

    async def run(self, chunks: Sequence[Trajectory]) -> list[SearchNode]:
        """From the first chunks to the group's ends."""
        wanted = self.grower.draw.group
        start = replace(chunks[0], tokens=chunks[0].tokens[: self.grower.prompt_len])
        root = SearchNode(Twig(start, (), ()), None, expanded=True)
        node: SearchNode | None = root
        found = await self._adopt(root, list(chunks))
        while len(self.ends) < wanted and self.expansions < self.config.expansions:
            node = self._next(node, found)
            if node is None:
                break
            found = await self._adopt(node, await self._grow([node] * self.config.width, most=self.chunk))
            node.expanded = True
            self.expansions += 1
        for end in sorted(self.waiting, key=_preference)[: max(wanted - len(self.ends), 0)]:
            self._count(end)
        await self._finish(root, wanted - len(self.ends))
        return self.ends

    def _next(self, node: SearchNode | None, found: bool) -> SearchNode | None:
        """Down the tree while no end was found, else the best open node of the whole tree."""
        below = [child for child in node.children if not child.end] if node and not found else []
        if below and node:
            n = np.log(max(node.visits, 1))
            return max(below, key=lambda c: c.quality + self.config.uct * np.sqrt(n / max(c.visits, 1)))
        return max(self._open(), key=self._promise, default=None)

    def _open(self) -> list[SearchNode]:
        return [node for node in self.nodes if not node.end and not node.expanded]

    def _promise(self, node: SearchNode) -> float:
        above = node.parent.quality if node.parent else 0.0
        return 0.4 * float(np.tanh(above)) + 0.01 * float(np.sqrt(node.depth / self.config.depth))

    async def _grow(self, nodes: Sequence[SearchNode], *, most: int | None) -> list[Trajectory | None]:
        tag = "chunk" if most else "end"
        names = [".".join(map(str, (*node.twig.path, tag, i))) for i, node in enumerate(nodes)]
        stems = [Stem(n.twig.row, len(n.twig.row.tokens), name) for n, name in zip(nodes, names, strict=True)]
        return await self.grower.grow(stems, most=most)

    async def _adopt(self, parent: SearchNode, rows: Sequence[Trajectory | None]) -> bool:
        """New children; whether an end is among them, of which the preferred one counts."""
        kept = [(i, row) for i, row in enumerate(rows) if row is not None]
        twigs = [parent.twig.with_piece(i, row) for i, row in kept]
        over = [twig for twig in twigs if twig.finished(self.limit)]
        verified = await self.grower.verified([twig.row for twig in over])
        done = {twig.path: replace(twig, row=row) for twig, row in zip(over, verified, strict=True)}
        new = [SearchNode(done.get(twig.path, twig), parent, end=twig.path in done) for twig in twigs]
        parent.children += new
        self.nodes += new
        for child in new:
            child.visits += not child.end
        ends = [child for child in new if child.end]
        self.waiting += ends
        if ends and len(self.ends) < self.grower.draw.group:
            self._count(min(ends, key=_preference))
        return bool(ends)

    def _count(self, end: SearchNode) -> None:
        """Into the result, and its value up to the root; an error has no value."""
        self.waiting.remove(end)
        self.ends.append(end)
        verdict = end.twig.row.verdict
        if verdict is None or verdict.error:
            return
        leaf, node = end, end
        while True:
            weight = max((node.depth + 1) / (leaf.depth + 1), 0.1)
            node.value = backed_up(node.value, weight * (1.0 if verdict.correct else -1.0))
            node.visits += 1
            if node.parent is None:
                return
            node = node.parent

    async def _finish(self, root: SearchNode, missing: int) -> None:
        """Write the best open nodes (the prompt, if there is none) to their end in one go."""
        if missing <= 0:
            return
        best = sorted(self._open(), key=self._promise, reverse=True) or [root]
        nodes = [best[i % len(best)] for i in range(missing)]
        rows = await self._grow(nodes, most=None)
        kept = [(i, n, row) for i, (n, row) in enumerate(zip(nodes, rows, strict=True)) if row is not None]
        verified = await self.grower.verified([row for _, _, row in kept])
        for (i, node, _), row in zip(kept, verified, strict=True):
            name = len(node.children) + self.config.width + self.grower.draw.group + i
            end = SearchNode(node.twig.with_piece(name, row), node, end=True)
            self.waiting.append(end)
            self._count(end)


def backed_up(value: float, new: float) -> float:
    """The value of a node after one more from below: a failure does not lessen what succeeded."""
    if value * new >= 0:
        return value + new
    return new if new > 0 else value


def token_scores(group: Group, tree: Tree, leaf: F64, *, chunk: int) -> list[F64]:
    """[L] per row: tanh of the value of the token's chunk, in the last one the leaf's own (NaN has no part)."""
    values: dict[tuple[int, int], float] = {}
    paths = [_chunks(group, tree, row, chunk) for row in range(len(group))]
    for path, v in zip(paths, leaf, strict=True):
        for d, (key, _, _) in enumerate(path if not np.isnan(v) else (), start=1):
            new = max((d + 1) / (len(path) + 1), 0.1) * v
            values[key] = backed_up(values.get(key, 0.0), float(new))
    out = []
    for t, path, v in zip(group.trajectories, paths, np.nan_to_num(leaf), strict=True):
        scores = np.zeros(len(t.tokens))
        for key, a, b in path:
            scores[a:b] = v if b == len(t.tokens) else np.tanh(values.get(key, 0.0))
        out.append(scores)
    return out


def _chunks(group: Group, tree: Tree, row: int, chunk: int) -> list[tuple[tuple[int, int], int, int]]:
    """((row that it was sampled for, number), start, end) of each chunk of a row."""
    length = len(group.trajectories[row].tokens)
    out = []
    for k, a in enumerate(range(group.prompt_len, length, chunk)):
        owner = next(tree.nodes[n].row for n in tree.paths[row] if tree.nodes[n].start <= a < tree.nodes[n].end)
        out.append(((owner, k), a, min(a + chunk, length)))
    return out


def _preference(node: SearchNode) -> tuple[int, float]:
    """Right before wrong before unfinished before error; then the surest: least mean surprisal."""
    row = node.twig.row
    verdict = row.verdict
    assert verdict is not None
    rank = 3 if verdict.error else 0 if verdict.correct else 1 if row.finish == "stop" else 2
    return rank, -float(np.nanmean(row.logprobs[row.origin == Origin.SAMPLED]))
