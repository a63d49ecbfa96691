"""Entropy bonus: the classic maximum-entropy term in the policy loss (A3C, 1602.01783).

    l[b,t] <- l[b,t] - coef * H[b,t],    H = -sum_v pi(v) log pi(v)                    all [B,T], H with gradient

H is the exact entropy of the next-token distribution after division by the sampling temperature. Being part of
the token loss, the bonus takes the objective's reduction and the row weights.
A3C sums it over the steps of a rollout; the formula is the same. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`coef` in loss units per nat; 0 turns it off."""

    coef: NonNegativeFloat = 1e-3


class EntropyBonus(AddOn):
    """loss -= coef * entropy."""

    kind = "entropy_bonus"
    Config = Config
    token_needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def knobs(self, update: Update) -> Knobs:
        """`active`: the tokens that get the bonus."""
        tokens = sum(int(np.count_nonzero(row.weight)) for row in update.rows) if self.config.coef else 0
        return Knobs(metrics={"active": float(tokens)})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        return loss - self.config.coef * view.streams["entropy"] if self.config.coef else loss
