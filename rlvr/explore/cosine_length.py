"""Cosine length reward (2502.03373, as in open-r1): right answers should be short, wrong ones should have tried longer.

    c(len; a, b) = b + (a - b) / 2 * (1 + cos(pi * min(len / max_len, 1)))             from a at 0 to b at max_len
    R_i <- R_i + coef * (c(len_i; 1, 0.5)     if row i is correct
                         c(len_i; -1, -0.5)   otherwise)                               R [G]

Lengths are response tokens. The order is kept: with any coef >= 0 a right answer has more than a wrong one.
Differs from the code: the cosine is clamped at `max_len` (open-r1's wraps, so that twice as long a text earns the most
again); lengths are tokens, not characters; it is added to the raw score, times `coef`, instead of replacing it, so that
0 turns it off. Groups of one raw score are shaped too, as intended for the wrong ones; credit does not divide them by
their standard deviation. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics

RIGHT, WRONG = (1.0, 0.5), (-1.0, -0.5)  # at length 0, at max_len


class Config(AddOnConfig):
    """`max_len` tokens is where the cosine ends: as a rule sampling.max_tokens."""

    coef: NonNegativeFloat = 1.0
    max_len: PositiveInt = 1024


class CosineLength(AddOn):
    """reward += coef * cosine of the length."""

    kind = "cosine_length"
    Config = Config

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the cosine added; rows in error keep NaN."""
        if not self.config.coef:
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows with a bonus that is not 0; `bonus_abs_mean` over those rows; `beyond`: rows over max_len."""
        paid = np.concatenate([np.zeros(0, dtype=np.float32), *(self._bonus(group) for group in groups)])
        paid = paid[paid != 0]
        beyond = sum(t.response_len > self.config.max_len for group in groups for t in group.trajectories)
        mean = float(np.abs(paid).mean()) if len(paid) else 0.0
        return {"active": float(len(paid)), "bonus_abs_mean": mean, "beyond": float(beyond)}

    def _bonus(self, group: Group) -> F32:
        rows = zip(group.trajectories, group.correct, strict=True)
        scores = [cosine(t.response_len, right=bool(right), max_len=self.config.max_len) for t, right in rows]
        return np.where(group.valid, self.config.coef * np.array(scores), 0.0).astype(np.float32)


def cosine(length: int, *, right: bool, max_len: int) -> float:
    """The reward of one length, in [-1, -0.5] or [0.5, 1]."""
    begin, end = RIGHT if right else WRONG
    return end + (begin - end) / 2 * (1 + float(np.cos(np.pi * min(length / max_len, 1.0))))


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
