"""From groups to training rows, updates and micro-batches; every split is deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from rlvr.types import F32, Group, Row, TokenBatch, Trajectory


def collate(groups: Sequence[Group]) -> tuple[Row, ...]:
    """The rows of one step, in draw order then member order; one whose verdict is an error has weight 0 everywhere."""
    rows = []
    for group in groups:
        advantages = group.advantages or tuple(np.zeros_like(t.weight) for t in group.trajectories)
        rewards = np.full(len(group), np.nan) if group.rewards is None else group.rewards
        members = zip(group.trajectories, group.valid, advantages, rewards, strict=True)
        for member, (t, ok, adv, reward) in enumerate(members):
            row = _row(f"{group.draw}/{member}", group.draw, t, adv, dead=not ok)
            row = replace(row, task=group.task.key, reward=float(reward), source=t.source)
            rows += [_edge(row, a, b) for a, b in edges(t)] if t.cuts else [row]
    return tuple(rows)


def edges(t: Trajectory) -> list[tuple[int, int]]:
    """[a, b) of each row that a trajectory with cuts is trained as: those with a weight; the last when none has."""
    spans = list(pairwise((0, *t.cuts)))
    return [(a, b) for a, b in spans if t.weight[a:b].any()] or spans[-1:]


def _edge(row: Row, start: int, end: int) -> Row:
    """tokens[:end], trained from `start` on; the numbers of a token stay those of the token."""
    length = len(row.tokens)
    weight = np.where(np.arange(length) >= start, row.weight, 0).astype(np.float32)
    return replace(
        row,
        key=f"{row.key}/{end}",
        tokens=row.tokens[:end],
        weight=weight[:end],
        logprobs=row.logprobs[:end],
        version=row.version[:end],
        temperature=row.temperature[:end],
        advantages=np.where(weight != 0, row.advantages, 0)[:end].astype(np.float32),
        streams={name: value[:end] if len(value) == length else value for name, value in row.streams.items()},
        sft_weight=None if row.sft_weight is None else np.where(weight != 0, row.sft_weight, 0)[:end],
    )


def _row(key: str, draw: int, t: Trajectory, advantages: F32, *, dead: bool) -> Row:
    return Row(
        key=key,
        group=draw,
        tokens=t.tokens,
        weight=np.zeros_like(t.weight) if dead else t.weight,
        logprobs=t.logprobs,
        version=t.version,
        temperature=t.temperature,
        advantages=advantages.astype(np.float32),
        streams=t.streams,
        sft_weight=None if t.sft_weight is None else (np.zeros_like(t.sft_weight) if dead else t.sft_weight),
    )


def row_table(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """For each group position, the positions of its rows in `collate`'s output."""
    out, start = [], 0
    for group in groups:
        rows = sum(len(edges(t)) if t.cuts else 1 for t in group.trajectories)
        out.append(tuple(range(start, start + rows)))
        start += rows
    return out


def split_updates(groups: int, *, minibatches: int, epochs: int, seed: int) -> list[list[int]]:
    """Group positions of each update of a step: whole groups, a fresh seeded order each epoch.

    With `minibatches` 1 the order is kept. Sizes differ by at most one group.
    """
    updates = []
    for epoch in range(epochs):
        order = np.arange(groups)
        if minibatches > 1:
            order = np.random.default_rng([seed, epoch]).permutation(groups)
        updates += [sorted(int(i) for i in part) for part in np.array_split(order, minibatches) if len(part)]
    return updates


def micro_batches(lengths: Sequence[int], *, ranks: int, token_budget: int) -> list[list[tuple[int, ...]]]:
    """Positions of the rows of each micro-batch of each rank: `[rank][micro]`.

    Rows of similar length share a micro-batch of at most `token_budget` padded tokens (one row may exceed it
    alone). Every rank gets the same number (ZeRO-3 ranks run in lockstep) and about the same padded tokens;
    an empty tuple is a filler, needed only with fewer rows than ranks.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    micros: list[list[int]] = []
    for i in order:
        if micros and (len(micros[-1]) + 1) * lengths[micros[-1][0]] <= token_budget:
            micros[-1].append(i)
        else:
            micros.append([i])

    def cost(micro: Sequence[int]) -> int:
        return len(micro) * max((lengths[i] for i in micro), default=0)

    while len(micros) % ranks:
        widest = max((m for m in micros if len(m) > 1), key=cost, default=None)
        if widest is None:
            micros.append([])
            continue
        micros.remove(widest)
        middle = len(widest) // 2
        micros += [widest[:middle], widest[middle:]]

    per_rank = len(micros) // ranks
    shares: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for micro in sorted(micros, key=lambda m: (-cost(m), m)):
        rank = min((r for r in range(ranks) if len(shares[r]) < per_rank), key=lambda r: (load[r], r))
        shares[rank].append(tuple(micro))
        load[rank] += cost(micro)
    return shares


def token_batch(rows: tuple[Row, ...], index: Sequence[int], *, scale: F32) -> TokenBatch:
    """One update's rows with their global scales; the supervised channel is a token mean of its own.

    Its mean is over the tokens with a weight there, whatever the weight: weights of gamma are gamma times the mean.
    """
    tokens = sum(int(np.count_nonzero(sft)) for i in index if (sft := rows[i].sft_weight) is not None)
    sft_scale = np.full(len(index), 1.0 / tokens if tokens else 0.0, dtype=np.float32)
    return TokenBatch(rows=rows, index=tuple(index), scale=scale.astype(np.float32), sft_scale=sft_scale)
