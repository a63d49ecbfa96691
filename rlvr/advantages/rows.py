"""Statistics over the rows of a whole step, and what an estimator does to single rows, beside `base`.

Statistics are float64, leave error rows out, and give the same bits in whatever order rows come: sums over rows are
`math.fsum`, which rounds once. What is over the step (not over a group) also leaves out rows without a trained token
(`counts`): they are in no loss, so they have no say in its scale. The baseline of their group keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlvr.advantages.base import F64, centred, spread
from rlvr.types import Bool, Group, Trajectory


def pooled(rows: Sequence[F64]) -> tuple[float, float]:
    """Mean and population standard deviation of all numbers in ragged `rows` together; (0, 0) where there are none.

    Two passes, so nothing cancels; a standard deviation of equal numbers is exactly 0.
    """
    filled = [row for row in rows if len(row)]
    if not filled:
        return 0.0, 0.0
    low, high = min(float(row.min()) for row in filled), max(float(row.max()) for row in filled)
    if low == high:
        return low, 0.0
    count = sum(len(row) for row in filled)
    mean = math.fsum(float(row.sum()) for row in filled) / count
    return mean, math.sqrt(math.fsum(float(np.square(row - mean).sum()) for row in filled) / count)


def trained(t: Trajectory) -> int:
    """Tokens of a row with a weight in the policy loss."""
    return int(np.count_nonzero(t.weight))


def counts(group: Group) -> Bool:
    """[G] rows that have a say in what is over the step: a verdict that is not an error, and a trained token."""
    return group.valid & np.array([bool(t.weight.any()) for t in group.trajectories], dtype=bool)


def scatter(group: Group, tokens: Sequence[F64]) -> Group:
    """The group with numbers for each trained token, ragged; 0 elsewhere. What stands for rows in error is ignored."""
    out = [np.zeros(len(t.weight), dtype=np.float32) for t in group.trajectories]  # rows in error stay so
    for full, values, t, valid in zip(out, tokens, group.trajectories, group.valid, strict=True):
        if valid:
            full[t.weight != 0] = values
    return group.with_(advantages=tuple(out))


def masked(group: Group) -> Group:
    """The group without a say: weight 0 on every token, so that its rows leave the normalisers as well."""
    blank = tuple(replace(t, weight=np.zeros_like(t.weight)) for t in group.trajectories)
    return spread(group.with_(trajectories=blank), np.zeros(len(group)))


def step_scores_differ(groups: Sequence[Group]) -> bool:
    """`base.scores_differ` over the rows of the step that count, for estimators that divide by a number of the step."""
    return len({float(s) for group in groups for s in group.scores[counts(group)]}) > 1


def centred_scores_differ(groups: Sequence[Group]) -> bool:
    """The same of raw scores less the mean of their group: with a row that does not count they may be equal."""
    scores = [centred(group.scores.astype(np.float64))[counts(group)] for group in groups]
    return pooled(scores)[1] > 0.0
