"""VERL, effective-rank shaping (2509.23808): more advantage where the hidden states spread more than usual.

    ER, ERV, ERA     effective rank of a response's hidden states, and its first and second differences along it,
                     every `stride` tokens: see `rlvr/objectives/effective_rank.py`
    dev(x) = clip((x - mu_x) / (|mu_x| + 1e-8), -5, 5)              mu_x: moving average of the steps' means
    g      = sigmoid(k dev(ERA))
    Phi    = coef * ((1 - g) tanh(dev(ERV)) + g tanh(dev(ER)))                        one number a response
    A[t]  <- A[t] + min(max(Phi, 0), |A[t]| / kappa)                                  on every trained token [L]

The hidden states are those of the last layer that predict the response's tokens, from the trainer's forward with the
weights at the start of the step; ranks are computed in float64. The first step has no average and shapes nothing.

Differs from the released code (hf618/VERL), which with its documented flags computes no auxiliary term at all, so that
its shaping does nothing; where it does, it changes the last token's advantage only. Its calculator looks at the last
512 tokens by default; here the whole response counts. It costs an eigendecomposition of a Gram matrix of
min(t, d) squared, every `stride` tokens of every response. Fidelity: close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics, Trajectory, stream

LIMIT, EPS = 5.0, 1e-8
Means = tuple[float, float, float]  # of ER, ERV, ERA


class Config(AddOnConfig):
    """`coef` is the paper's c, 0 turns it off; `ema` the share of the new mean; `k` the gate's sharpness."""

    coef: NonNegativeFloat = 1.0
    kappa: float = Field(2.0, ge=1.0)
    k: PositiveFloat = 2.0
    ema: float = Field(0.3, gt=0.0, le=1.0)
    stride: PositiveInt = 40


class EffectiveRank(AddOn):
    """advantage += min(max(Phi, 0), |advantage| / kappa)."""

    kind = "effective_rank"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.stream = stream("effective_rank", config.stride)
        self.needs = frozenset({self.stream}) if config.coef else frozenset()
        self.means: Means | None = None

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """See the module; rows whose ranks are not finite keep their advantage."""
        return groups if self.means is None or not self.config.coef else [self._shaped(g) for g in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Moves the averages. `active`: tokens that gained; `nonfinite_rows` had no ranks."""
        if not self.config.coef:
            return {}
        rows = [
            t.streams[self.stream]
            for g in groups
            for t, ok in zip(g.trajectories, g.valid, strict=True)
            if ok and t.weight.any()
        ]
        active = float(sum(self._gained(group) for group in groups)) if self.means else 0.0
        finite = [row for row in rows if np.isfinite(row).all()]
        out = {"active": active, "nonfinite_rows": float(len(rows) - len(finite))}
        if not finite:
            return out
        now = np.mean(np.asarray(finite, dtype=np.float64), axis=0)
        mixed = now if self.means is None else (1.0 - self.config.ema) * np.array(self.means) + self.config.ema * now
        self.means = (float(mixed[0]), float(mixed[1]), float(mixed[2]))
        return out | {"er": float(now[0]), "erv": float(now[1]), "era": float(now[2])}

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"means": None if self.means is None else list(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        means = state["means"]
        self.means = None if means is None else (float(means[0]), float(means[1]), float(means[2]))

    def _phi(self, t: Trajectory) -> float:
        assert self.means is not None
        return phi(t.streams[self.stream], self.means, k=self.config.k, coef=self.config.coef)

    def _shaped(self, group: Group) -> Group:
        if group.advantages is None:
            return group
        rows = zip(group.advantages, group.trajectories, strict=True)
        return group.with_(advantages=tuple(shaped(a, self._phi(t), kappa=self.config.kappa) for a, t in rows))

    def _gained(self, group: Group) -> int:
        if group.advantages is None:
            return 0
        rows = zip(group.advantages, group.trajectories, strict=True)
        return sum(int(np.count_nonzero(a)) for a, t in rows if self._phi(t) > 0)


def phi(ranks: F32, means: Means, *, k: float, coef: float) -> float:
    """Phi of one response from its (ER, ERV, ERA) and the averages; 0 where a rank is not finite."""
    if not np.isfinite(ranks).all():
        return 0.0
    er, erv, era = (
        min(max((float(x) - mu) / (abs(mu) + EPS), -LIMIT), LIMIT) for x, mu in zip(ranks, means, strict=True)
    )
    g = 1.0 / (1.0 + math.exp(-k * era))
    return coef * ((1.0 - g) * math.tanh(erv) + g * math.tanh(er))


def shaped(advantages: F32, bonus: float, *, kappa: float) -> F32:
    """A + min(max(bonus, 0), |A| / kappa), [L]."""
    return (advantages + np.minimum(max(bonus, 0.0), np.abs(advantages) / kappa)).astype(np.float32)
