"""Entropy-shaped advantage, "Reasoning with Exploration" (2506.14758): uncertain tokens gain a little advantage.

    psi[b,t] = min(alpha * H[b,t], |A[b,t]| / kappa)                    H detached, current policy, nats
    A <- A + psi                                                        [B,T], before the surrogate

kappa >= 1 keeps the sign of A (at 1 a negative advantage can reach 0); A = 0 stays 0. The shaped advantage is made
afresh in every update from the entropy of the current weights, which the loss's own forward already has: no forward is
added. Differs from a re-implementation that adds psi in place, so that a second epoch adds it again. The defaults are
alpha 0.4 (GRPO; 0.1 for PPO) and kappa 2, which we could not check against the paper's text. Methods that select
tokens on the controller (Clip-Cov) see the advantage without psi. Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`alpha` in units of advantage per nat, 0 turns it off; `kappa` bounds psi by |A| / kappa."""

    alpha: NonNegativeFloat = 0.4
    kappa: float = Field(2.0, ge=1.0)


class EntropyAdvantage(AddOn):
    """advantage += min(alpha * entropy, |advantage| / kappa)."""

    kind = "entropy_advantage"
    Config = Config
    token_reads: ClassVar[frozenset[str]] = frozenset({"entropy"})
    selects: ClassVar[bool] = True
    reweighs: ClassVar[bool] = True

    def knobs(self, update: Update) -> Knobs:
        """`active`: tokens with an advantage to shape."""
        shaped = (np.count_nonzero(row.advantages * row.weight) for row in update.rows)
        return Knobs(metrics={"active": float(sum(shaped)) if self.config.alpha else 0.0})

    def token_advantage(self, view: TokenView) -> Tensor:
        """See the module."""
        if not self.config.alpha:
            return view.advantages
        psi = (self.config.alpha * view.streams["entropy"].detach()).minimum(view.advantages.abs() / self.config.kappa)
        return view.advantages + psi
