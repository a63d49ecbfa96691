"""Trees of responses: what is sampled again from where, what it costs, and credit that comes back from the leaves.

A tree is no type of its own beside the group: a row with `parent = (sibling, p)` has its first p tokens from that
sibling, and everything follows from these links. A *node* is a run of tokens between two branchings; the nodes from
the root to a leaf, joined, are exactly the row's response. Rewards may be shaped before credit is taken; a leaf whose
verdict is an error has no part in any value.

    V(s) = mean of R over the leaves below s;    L(s) = their number                              R [G], V, L [nodes]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlvr.explore.base import Context, Draw
from rlvr.seeds import stable_seed
from rlvr.types import F32, Completion, Group, Origin, Request, Sampling, Trajectory, Verdict

F64 = npt.NDArray[np.float64]
Rows = Literal["path", "path_dedup", "edge"]


class Ledger:
    """Tokens to decode for one draw: what was spent and reserved together never exceeds the budget (None: no limit).

    A call reserves the most it can decode and settles what it did decode.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.spent = self.reserved = self.refused = 0

    @property
    def left(self) -> int | None:
        """Tokens that could still be reserved; None where there is no limit."""
        return None if self.budget is None else self.budget - self.spent - self.reserved

    def reserve(self, tokens: int) -> bool:
        """Whether so many tokens fit; a request that does not fit is counted in `refused`."""
        if self.left is not None and tokens > self.left:
            self.refused += 1
            return False
        self.reserved += tokens
        return True

    def settle(self, reserved: int, spent: int) -> None:
        """Turn a reservation into what was decoded. Raises ValueError when that is more, or was never reserved."""
        if not 0 <= spent <= reserved <= self.reserved:
            raise ValueError(f"settles {spent} of {reserved} tokens; {self.reserved} are reserved")
        self.reserved -= reserved
        self.spent += spent


@dataclass(frozen=True)
class Stem:
    """`row.tokens[:at]` is to be continued; `path` names the new branch within its draw, and so its seed."""

    row: Trajectory
    at: int
    path: str


@dataclass(frozen=True)
class Grower:
    """Continues stems of one draw: same sampling, one replica, each branch with a seed from its path."""

    draw: Draw
    ctx: Context
    ledger: Ledger
    name: str
    prompt_len: int

    async def grow(
        self, stems: Sequence[Stem], *, most: int | None = None, sampling: Sampling | None = None
    ) -> list[Trajectory | None]:
        """A continuation of each stem, of at most `most` tokens and never beyond the response limit, not verified.

        `sampling` stands in for the draw's, but for its limit and seed. None where no token is left, or the ledger
        refuses. What the engine raises passes through, settled.
        """
        limits = [self._limit(stem, most) for stem in stems]
        chosen = [(i, n) for i, n in enumerate(limits) if n > 0 and self.ledger.reserve(n)]
        out: list[Trajectory | None] = [None] * len(stems)
        done: list[Completion] = []
        try:
            if chosen:
                done = await self.ctx.generate(
                    [self._request(stems[i], n, sampling or self._sampling(stems[i])) for i, n in chosen]
                )
        finally:
            for k, (_, n) in enumerate(chosen):
                self.ledger.settle(n, len(done[k].tokens) if k < len(done) else 0)
        for (i, _), completion in zip(chosen, done, strict=True):
            places = np.arange(len(completion.tokens))
            heat = self._sampling(stems[i]).temperatures(places)
            out[i] = extended(stems[i].row, stems[i].at, completion, temperature=heat)
        return out

    async def verified(self, rows: Sequence[Trajectory]) -> list[Trajectory]:
        """The rows with their whole responses decoded and scored."""
        texts = [self.ctx.decode(row.tokens[self.prompt_len :]) for row in rows]
        verdicts: Sequence[Verdict] = await self.ctx.verify(self.draw.task, texts) if rows else []
        return [replace(r, text=t, verdict=v) for r, t, v in zip(rows, texts, verdicts, strict=True)]

    def _limit(self, stem: Stem, most: int | None) -> int:
        room = self.draw.sampling.max_tokens - (stem.at - self.prompt_len)
        return room if most is None else min(room, most)

    def _sampling(self, stem: Stem) -> Sampling:
        return self.draw.sampling.after(stem.at - self.prompt_len)

    def _request(self, stem: Stem, limit: int, sampling: Sampling) -> Request:
        seed = stable_seed(self.ctx.seed, "branch", self.name, self.draw.index, stem.path)
        return Request(
            key=f"{self.draw.index}/{self.name}/{stem.path}",
            tokens=stem.row.tokens[: stem.at],
            sampling=replace(sampling, seed=seed, max_tokens=limit),
            home=self.draw.index,
        )


def extended(row: Trajectory, at: int, completion: Completion, *, temperature: float | F32) -> Trajectory:
    """`row` up to token `at`, its numbers kept bit for bit, then the completion; without verdict, text and parent."""
    new = len(completion.tokens)
    return Trajectory(
        tokens=np.concatenate([row.tokens[:at], completion.tokens]).astype(np.int32),
        origin=np.concatenate([row.origin[:at], np.full(new, Origin.SAMPLED)]).astype(np.int8),
        weight=np.concatenate([row.weight[:at], np.ones(new)]).astype(np.float32),
        logprobs=np.concatenate([row.logprobs[:at], completion.logprobs]).astype(np.float32),
        version=np.concatenate([row.version[:at], completion.versions]).astype(np.int32),
        temperature=np.concatenate([row.temperature[:at], np.broadcast_to(temperature, new)]).astype(np.float32),
        finish=completion.finish,
        generated_under=row.generated_under,
        source=row.source,
        streams=_likeliest(row, at, completion),
    )


def _likeliest(row: Trajectory, at: int, completion: Completion) -> dict[str, F32]:
    """[L] "top_k" and "top_logp_k", k = 1 ...: ids and log-probs of the likeliest tokens, where they are asked for."""
    if completion.top is None:
        return {}
    out = {}
    for name, values in zip(("top", "top_logp"), completion.top, strict=True):
        for k in range(values.shape[1]):
            head = row.streams.get(f"{name}_{k + 1}", np.zeros(at, np.float32))[:at]
            out[f"{name}_{k + 1}"] = np.concatenate([head, values[:, k]]).astype(np.float32)
    return out


@dataclass(frozen=True)
class Node:
    """tokens[start:end] of row `row` (and of every row below); `parent` is a place in `Tree.nodes`, -1 of the root."""

    parent: int
    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Tree:
    """The nodes of a group, parents first (0 is the root, before the first response token), and each row's path."""

    nodes: tuple[Node, ...]
    paths: tuple[tuple[int, ...], ...]  # per row, without the root

    @classmethod
    def of(cls, group: Group) -> Tree:
        """From the rows' `parent` links. Raises ValueError for a link to a later row, or beyond the sibling's end."""
        start, up = _links(group)
        sizes = [len(t.tokens) for t in group.trajectories]
        children = [sorted({start[i] for i, j in enumerate(up) if j == k}) for k in range(len(sizes))]
        nodes, own = [Node(-1, -1, group.prompt_len, group.prompt_len)], []
        for i, size in enumerate(sizes):
            j = up[i]
            last = 0 if j is None else next(n for n in own[j] if nodes[n].end == start[i])
            own.append([])
            for a, b in pairwise([start[i], *children[i], size]):
                nodes.append(Node(last, i, a, b))
                last = len(nodes) - 1
                own[i].append(last)
        return cls(tuple(nodes), tuple(_path(nodes, mine[-1]) for mine in own))

    def leaves(self, counted: npt.NDArray[np.bool_]) -> F64:
        """L: how many of the counted rows [G] are below each node."""
        return self.sums(counted.astype(np.float64))

    def sums(self, values: F64) -> F64:
        """The sum of values [G] of the rows below each node."""
        out = np.zeros(len(self.nodes))
        for value, path in zip(values, self.paths, strict=True):
            out[[0, *path]] += value
        return out

    def means(self, rewards: F64) -> F64:
        """V: the mean reward of the leaves below each node; NaN where there is none without error (NaN)."""
        known = ~np.isnan(rewards)
        count = self.leaves(known)
        return np.where(count > 0, self.sums(np.where(known, rewards, 0.0)) / np.maximum(count, 1), np.nan)

    def nested_means(self, rewards: F64) -> F64:
        """The mean of the children's values, from the leaves up, each child alike; NaN where nothing is known."""
        below: list[list[float]] = [[] for _ in self.nodes]
        out = np.full(len(self.nodes), np.nan)
        ends = {path[-1]: row for row, path in enumerate(self.paths)}
        for n in range(len(self.nodes) - 1, -1, -1):
            out[n] = rewards[ends[n]] if n in ends else float(np.mean(below[n])) if below[n] else np.nan
            if n and not np.isnan(out[n]):
                below[self.nodes[n].parent].append(out[n])
        return out

    def minus_parent(self, values: F64) -> F64:
        """values[s] - values[parent of s]; 0 at the root."""
        return np.array([0.0, *(values[n] - values[node.parent] for n, node in enumerate(self.nodes) if n)])

    def spread(self, group: Group, values: F64) -> Group:
        """The group with the number of a token's node as its advantage; 0 without weight and on rows in error."""
        out = []
        for t, path, valid in zip(group.trajectories, self.paths, group.valid, strict=True):
            row: F32 = np.zeros(len(t.tokens), dtype=np.float32)
            for n in path if valid else ():
                row[self.nodes[n].start : self.nodes[n].end] = values[n]
            out.append(np.where(t.weight != 0, row, 0).astype(np.float32))
        return group.with_(advantages=tuple(out))

    def laid_out(self, group: Group, rows: Rows, *, drop_zero: bool = False) -> Group:
        """What is trained on: each leaf's whole path, or each token once.

        `path_dedup` leaves a shared token its weight in the first row that is trained on; `edge` trains each node as
        a row of its own besides, on everything before it. `drop_zero` takes nodes without advantage out.
        """
        if rows == "path":
            return group
        taken: set[int] = set()
        trajectories = []
        for i, (t, path, valid) in enumerate(zip(group.trajectories, self.paths, group.valid, strict=True)):
            weight = np.zeros_like(t.weight)
            for n in path:
                a, b = self.nodes[n].start, self.nodes[n].end
                if (
                    valid
                    and n not in taken
                    and not (drop_zero and group.advantages and not group.advantages[i][a:b].any())
                ):
                    weight[a:b] = t.weight[a:b]
            taken.update(path if valid and t.weight.any() else ())
            cuts = tuple(sorted({self.nodes[n].end for n in path})) if rows == "edge" else ()
            trajectories.append(replace(t, weight=weight, cuts=cuts))
        advantages = group.advantages and tuple(
            np.where(t.weight != 0, a, 0).astype(np.float32)
            for a, t in zip(group.advantages, trajectories, strict=True)
        )
        return group.with_(trajectories=tuple(trajectories), advantages=advantages)


@dataclass(frozen=True)
class Twig:
    """A partial response grown piece by piece: `path` names its pieces from the root, `ends` is where each ends."""

    row: Trajectory
    path: tuple[int, ...]
    ends: tuple[int, ...]

    def with_piece(self, name: int, row: Trajectory) -> Twig:
        """One piece longer."""
        return Twig(row, (*self.path, name), (*self.ends, len(row.tokens)))

    def finished(self, limit: int) -> bool:
        """Whether nothing may follow: an end was sampled, or `limit` tokens (with the prompt) are there."""
        return self.row.finish != "length" or len(self.row.tokens) >= limit


def linked(leaves: Sequence[Twig]) -> tuple[Trajectory, ...]:
    """The leaves' rows, each with its parent: the first row before it that shares the most pieces."""
    rows = []
    for i, leaf in enumerate(leaves):
        shared = [_common(leaf.path, other.path) for other in leaves[:i]]
        most = max(shared, default=0)
        rows.append(replace(leaf.row, parent=(shared.index(most), leaf.ends[most - 1]) if most else None))
    return tuple(rows)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokens_saved(group: Group) -> int:
    """Response tokens that rows share with the sibling they branched from: read from the cache, not decoded again."""
    return sum(max(p - group.prompt_len, 0) for t in group.trajectories if t.parent for _, p in [t.parent])


def _links(group: Group) -> tuple[list[int], list[int | None]]:
    """Where each row's own tokens begin, and the row in whose own tokens (not inherited ones) it branched off."""
    start: list[int] = []
    up: list[int | None] = []
    for i, t in enumerate(group.trajectories):
        j, at = t.parent or (None, group.prompt_len)
        if j is not None and not (0 <= j < i and at < len(group.trajectories[j].tokens) and at <= len(t.tokens)):
            raise ValueError(
                f"row {i} of draw {group.draw} branches off row {j} at token {at}: no earlier row has that"
            )
        while j is not None and at <= start[j]:
            j = up[j]
        start.append(max(at, group.prompt_len))
        up.append(j)
    return start, up


def _path(nodes: Sequence[Node], leaf: int) -> tuple[int, ...]:
    out = []
    while leaf > 0:
        out.append(leaf)
        leaf = nodes[leaf].parent
    return tuple(reversed(out))
