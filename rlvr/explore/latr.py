"""LATR (2510.24302): fork where two tokens nearly tie, keep the fork if a short lookahead really differs.

    fork where p_2 > tau_abs and p_1 - p_2 < tau_rel;   drop it where edit_distance(fork, parent) / a < tau_ed

p are the probabilities at temperature 1 of the two likeliest next tokens, a (of `steps`) the compared tokens from the
fork on; a window with an end in it is not compared. Of a draw's G responses round(eta G) come from the tree, the others
are plain; `eta` maps a step to the share from then on. A tree is greedy until it has its branches, or `reach` tokens;
then every branch is sampled to its end, and plain responses make up for missing branches (`filled`). Advantages are
the estimator's. Greedy and forced tokens are no samples of the policy: their origin is `forced`, their behaviour
log-probs are unknown, and `mask_forced` takes them out of the loss.
Differs from the released code: forks are found in greedy chunks, not token by token, and judged before they fork
again, so nothing is removed later; responses are never duplicated; edit distance alone (the math scripts use suffix and
ROUGE-L); no running average of scores.
Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from rlvr.explore.base import AddOnConfig, Draw, Sample
from rlvr.rollout.replay import counted
from rlvr.rollout.tree import Grower, Stem
from rlvr.rollout.tree_method import TreeMethod
from rlvr.types import I32, Group, Metrics, Origin, Trajectory

Share = Annotated[float, Field(ge=0, le=1)]


class Config(AddOnConfig):
    """`eta` 0 throughout is plain sampling; `budget`: tokens to decode for one prompt, null is no limit."""

    eta: dict[NonNegativeInt, Share] = Field(default_factory=lambda: {0: 1.0, 100: 0.75, 200: 0.5, 300: 0.25})
    tau_abs: NonNegativeFloat = 0.25
    tau_rel: NonNegativeFloat = 0.15
    tau_ed: NonNegativeFloat = 0.4
    steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (20, 30, 50)  # tokens
    reach: PositiveInt = 512  # tokens
    mask_forced: bool = False
    budget: PositiveInt | None = None


@dataclass(eq=False)
class Branch:
    """A greedy branch; from token `at` on it is not its parent's."""

    row: Trajectory
    parent: Branch | None
    at: int


class LATR(TreeMethod):
    """Lookahead trees among a draw's responses."""

    kind = "latr"
    Config = Config

    @property
    def branches(self) -> bool:
        """Without a share of the responses it is plain sampling."""
        return any(self.config.eta.values())

    def wanted(self, draw: Draw) -> int:
        """Responses of a draw that come from the tree."""
        begun = [step for step in self.config.eta if step <= draw.step]
        return round(self.config.eta[max(begun)] * draw.group) if begun else 0

    async def planted(self, sample: Sample, draw: Draw) -> Group:
        """Plain where the step's share is none."""
        return await super().planted(sample, draw) if self.wanted(draw) else await sample(draw)

    def chains(self, draw: Draw) -> int:
        """Plain responses."""
        return draw.group - self.wanted(draw)

    async def grown(self, group: Group, grower: Grower) -> Group:
        """The greedy tree, its branches sampled to their ends, and plain responses for what is missing."""
        assert grower.draw.ctx is not None
        wanted, before = self.wanted(grower.draw), len(group)
        prompt = bare(grower.draw.ctx.encode(grower.draw.task))
        live = await self._tree(Branch(prompt, None, grower.prompt_len), grower, wanted)
        open_ = [b for b in live if b.row.finish == "length"]
        stems = [Stem(b.row, len(b.row.tokens), f"end.{i}") for i, b in enumerate(open_)]
        for branch, row in zip(open_, await grower.grow(stems), strict=True):
            branch.row = row or branch.row
        missing = [Stem(prompt, grower.prompt_len, f"plain.{i}") for i in range(wanted - len(live))]
        filled = [row for row in await grower.grow(missing) if row is not None]
        place = {branch: before + i for i, branch in enumerate(live)}
        rows = [replace(b.row, parent=(place[b.parent], b.at) if b.parent else None, streams={}) for b in live]
        if self.config.mask_forced:
            rows = [
                replace(r, weight=np.where(r.origin == Origin.FORCED, 0, r.weight).astype(np.float32)) for r in rows
            ]
        made = await grower.verified([*rows, *filled])
        counts = {**group.counts, f"{self.name}/filled": float(len(filled))}
        return group.with_(trajectories=(*group.trajectories, *made), counts=counts)

    async def _tree(self, root: Branch, grower: Grower, wanted: int) -> list[Branch]:
        look, front, live = max(self.config.steps), grower.prompt_len, [root]
        most = grower.prompt_len + min(self.config.reach, grower.draw.sampling.max_tokens)
        tried: set[tuple[Branch, int]] = set()
        while True:
            await lengthen(live, min(front + 2 * look, most), grower)
            found = [] if len(live) >= wanted else self._ties(live, tried, front, front + look)
            if found:
                found = found[: wanted - len(live)]
                tried.update(found)
                forks = [forked(branch, at) for branch, at in found]
                await lengthen(forks, most, grower, by=look)
                live += [fork for fork in forks if self._differs(fork)]
                continue
            front += look
            if len(live) >= wanted or front >= max(len(b.row.tokens) for b in live):
                return live

    def _ties(
        self, live: Sequence[Branch], tried: set[tuple[Branch, int]], start: int, end: int
    ) -> list[tuple[Branch, int]]:
        """(branch, token) where a fork may begin, by position, then by age of the branch."""
        out = []
        for at in range(start, end):
            for b in live:
                own = b.at + (b.parent is not None) <= at < len(b.row.tokens)
                if own and (b, at) not in tried and ties(b.row, at, self.config.tau_abs, self.config.tau_rel):
                    out.append((b, at))
        return out

    def _differs(self, fork: Branch) -> bool:
        """Whether no window says that the fork goes where its parent goes."""
        assert fork.parent is not None
        a, b = (before_end(branch.row)[fork.at :] for branch in (fork, fork.parent))
        windows = [n for n in self.config.steps if n <= min(len(a), len(b))]
        return not any(edit_distance(a[:n], b[:n]) / n < self.config.tau_ed for n in windows)

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The estimator's."""
        return groups

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Of every tree, and `filled`: plain responses in place of missing branches."""
        return super().observe(groups, metrics) | {"filled": counted(groups, self.name, "filled")}


def bare(prompt: I32) -> Trajectory:
    """A row before its first response token."""
    n = len(prompt)
    zeros = np.zeros(n, np.float32)
    return Trajectory(
        tokens=prompt.astype(np.int32), origin=np.full(n, Origin.PROMPT, np.int8), weight=zeros, logprobs=zeros,
        version=np.full(n, -1, np.int32), temperature=np.ones(n, np.float32), finish="length",
    )  # fmt: skip


async def lengthen(branches: Sequence[Branch], upto: int, grower: Grower, *, by: int | None = None) -> None:
    """Greedy tokens for each unfinished branch, until it has `upto` with the prompt, at most `by` of them."""
    greedy = replace(grower.draw.sampling, temperature=0.0, top_p=1.0, top_k=-1, top=2, annealing=None)
    short = [b for b in branches if b.row.finish == "length" and len(b.row.tokens) < upto]
    by_room: dict[int, list[Branch]] = {}
    for b in short:
        room = upto - len(b.row.tokens)
        by_room.setdefault(room if by is None else min(room, by), []).append(b)
    for room, some in by_room.items():
        names = [f"{b.at}.{len(b.row.tokens)}.{_digest(b.row.tokens)}" for b in some]
        stems = [Stem(b.row, len(b.row.tokens), name) for b, name in zip(some, names, strict=True)]
        for b, row in zip(some, await grower.grow(stems, most=room, sampling=greedy), strict=True):
            b.row = b.row if row is None else as_forced(row, len(b.row.tokens))


def as_forced(row: Trajectory, start: int) -> Trajectory:
    """The row with its tokens from `start` on marked as no samples of the policy."""
    new = np.arange(len(row.tokens)) >= start
    return replace(
        row,
        origin=np.where(new, Origin.FORCED, row.origin).astype(np.int8),
        logprobs=np.where(new, np.nan, row.logprobs).astype(np.float32),
    )


def forked(branch: Branch, at: int) -> Branch:
    """Its first tokens, then the second likeliest one at `at`."""
    t, end = branch.row, at + 1
    tokens = t.tokens[:end].copy()
    tokens[at] = int(t.streams["top_2"][at])
    row = replace(
        t, tokens=tokens, origin=t.origin[:end], weight=t.weight[:end], logprobs=t.logprobs[:end],
        version=t.version[:end], temperature=t.temperature[:end], finish="length",
        streams={name: np.where(np.arange(end) < at, s[:end], 0) for name, s in t.streams.items()},
    )  # fmt: skip
    return Branch(row, branch, at)


def before_end(t: Trajectory) -> I32:
    """Its tokens without the one that ended it."""
    return t.tokens[:-1] if t.finish == "stop" else t.tokens


def ties(t: Trajectory, at: int, tau_abs: float, tau_rel: float) -> bool:
    """Whether the second likeliest token at `at` is likely, and nearly as likely as the first."""
    first, second = np.exp(t.streams["top_logp_1"][at]), np.exp(t.streams["top_logp_2"][at])
    return bool(second > tau_abs and first - second < tau_rel)


def edit_distance(a: I32, b: I32) -> int:
    """Insertions, deletions and replacements from one to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def _digest(tokens: I32) -> str:
    import hashlib

    return hashlib.sha256(tokens.tobytes()).hexdigest()[:12]
