"""Clip-Cov (2505.22617): take the gradient from a few of the tokens that drive entropy down.

    c_j = (A_j - mean A) (logp_j - mean logp)        over the N trained tokens of the update, current log-probs
    I   = k tokens picked uniformly among {j : low < c_j < high, j not clipped by PPO},   k = max(floor(ratio N), 1)
    l_j <- 0 for j in I; the denominator of the mean stays                    A, logp, l: [B,T] at weight != 0

Differs from the released code (PRIME-RL/Entropy-Mechanism-of-RL): means and selection are global over the update,
as in the paper's equations (the code works per micro-batch, where max(., 1) picks far more than `ratio`, or nothing);
the pick is a hash of (seed, row, token), so it depends neither on ranks nor on the order of rows; `ratio` is a
fraction (the code's is a percentage), and `ratio: 0` turns the method off. In the code's scripts PPO's own clip
bounds are 1 (all but off): set `objective: {low: 1, high: 1}` to match. The whole token loss so far becomes 0: a KL in
the loss, and add-ons listed **before** this one, lose their gradient at those tokens too; list it first to spare
later ones. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.explore.hashing import random_subset
from rlvr.objectives.covariance import token_covariances
from rlvr.seeds import stable_seed
from rlvr.types import F32, Bool

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`ratio` of the update's trained tokens; the window (`low`, `high`) of their covariance, ends excluded."""

    ratio: float = Field(2e-4, ge=0.0, le=1.0)
    low: float = 1.0
    high: float = 5.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the window of covariances is (low, high): got low={self.low} above high={self.high}")
        return self


class ClipCov(AddOn):
    """loss = 0 at randomly picked tokens of high covariance."""

    kind = "clip_cov"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    measures: ClassVar[frozenset[str]] = frozenset({"logp"})
    selects: ClassVar[bool] = True
    reweighs: ClassVar[bool] = True

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at the picked tokens; `active` counts them, `candidates` those they were picked from."""
        if not self.config.ratio or not update.rows:
            return None
        logps = [stream["logp"] for stream in update.stats]
        trained = update.trained("logp")
        advantages = [row.advantages for row in update.rows]
        cov = token_covariances(advantages, logps, trained)
        candidates = [
            use
            & (c > self.config.low)
            & (c < self.config.high)
            & ~clipped(lp - row.streams["old_logp"], a, update.clip)
            for use, c, lp, a, row in zip(trained, cov, logps, advantages, update.rows, strict=True)
        ]
        tokens = sum(int(use.sum()) for use in trained)
        k = max(int(self.config.ratio * tokens), 1)
        keys = [row.key for row in update.rows]
        marks = random_subset(candidates, keys=keys, k=k, seed=stable_seed(update.seed, self.name))
        metrics = {
            "active": float(sum(mark.sum() for mark in marks)),
            "candidates": float(sum(int(c.sum()) for c in candidates)),
            "cov_mean": float(sum(c[use].sum() for c, use in zip(cov, trained, strict=True))) / max(tokens, 1),
        }
        return Knobs(marks=marks, metrics=metrics)

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        return loss if view.mark is None else loss * (1.0 - view.mark)


def clipped(log_ratio: F32, advantages: F32, clip: tuple[float, float]) -> Bool:
    """Where PPO's clip already took the gradient away, [L]."""
    ratio = np.exp(np.clip(log_ratio, -20.0, 20.0))
    return ((advantages > 0) & (ratio > 1.0 + clip[1])) | ((advantages < 0) & (ratio < 1.0 - clip[0]))
