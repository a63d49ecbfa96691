"""Lp-Reg, low-probability regularisation (2510.03222): do not let rare but sensible tokens be punished away.

    proxy(v) = pi_old(v) / Z where pi_old(v) >= kappa max pi_old, else 0;      Z = sum_{kept} pi_old          (min-p)
    S = {j : A_j < 0, logp_j among the lowest rho of the update's trained tokens, 0 < pi_j < proxy_j}
    l_j <- l_j + beta (exp(d) - d - 1) for j in S,      d = log proxy_j - logp_j                              [B,T]

d > 0 on S, so the gradient pushes the probability up, towards the proxy. Only log Z and max pi_old are needed of the
old distribution: two numbers a token. In the paper l under it is PPO's clip with bounds (1, 9), which never binds for
A < 0, so that its "-A r instead of the clipped term" on S is this sum: set `objective: {low: 1, high: 9}`.

Differs from the released code (CarlanLark/Lp-Reg-dev), after the paper: the percentile is over all trained tokens of
the update (the code takes the lowest of each micro-batch's tokens with A < 0, and nothing when they are few); at least
one token is looked at. As in the code, and not said in the paper, tokens already above the proxy are left alone.
rho and kappa are those of the 14B run; 32B: rho 0.005. `rho: 0` turns the method off. Fidelity: exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.explore.hashing import largest_subset
from rlvr.seeds import stable_seed
from rlvr.types import F32, Row, stream

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView

ROUNDING = 1e-5  # nats: a token at the threshold of min-p is kept, whichever way its log-prob was rounded


class Config(AddOnConfig):
    """`kappa` of the min-p filter; `rho`: lowest fraction of the update's tokens; `beta`: weight of the penalty."""

    kappa: float = Field(0.02, gt=0.0, le=1.0)
    rho: float = Field(0.01, ge=0.0, le=1.0)
    beta: NonNegativeFloat = 1.0


class LpReg(AddOn):
    """loss += beta * k3(logp, log proxy) at low-probability tokens of negative advantage."""

    kind = "lp_reg"
    Config = Config
    measures: ClassVar[frozenset[str]] = frozenset({"logp"})
    selects: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.kept = stream("log_kept", config.kappa)  # log Z
        self.needs = frozenset({"old_logp", "max_prob", self.kept})

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 on S; `active` counts it, `candidates` its tokens of negative advantage and low probability."""
        if not self.config.rho or not self.config.beta or not update.rows:
            return None
        trained = update.trained("logp")
        tokens = sum(int(use.sum()) for use in trained)
        lowest = largest_subset(
            [-stats["logp"] for stats in update.stats],
            trained,
            keys=[row.key for row in update.rows],
            k=math.ceil(self.config.rho * tokens),
            seed=stable_seed(update.seed, self.name),
        )
        negative = [low * (row.advantages < 0) for low, row in zip(lowest, update.rows, strict=True)]
        marks = [
            (low * (stats["logp"] < self._log_proxy(row))).astype(np.float32)
            for low, stats, row in zip(negative, update.stats, update.rows, strict=True)
        ]
        active, candidates = (float(sum(m.sum() for m in chosen)) for chosen in (marks, negative))
        return Knobs(marks=marks, metrics={"active": active, "candidates": candidates})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        if view.mark is None:
            return loss
        d = (view.old_logp - view.streams[self.kept] - view.logp).clamp(max=20.0)
        return loss + self.config.beta * view.mark * (d.expm1() - d)

    def _log_proxy(self, row: Row) -> F32:
        """log proxy of the row's own tokens [L], -inf where min-p drops them."""
        old = row.streams["old_logp"]
        with np.errstate(divide="ignore"):
            threshold = math.log(self.config.kappa) + np.log(row.streams["max_prob"]) - ROUNDING
        return np.where(old >= threshold, old - row.streams[self.kept], -np.inf).astype(np.float32)
