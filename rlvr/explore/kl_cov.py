"""KL-Cov (2505.22617): hold the few tokens that drive entropy down near the old policy.

    c_j = (A_j - mean A) (logp_j - mean logp)        over the N trained tokens of the update, current log-probs
    I   = the k tokens of largest c,   k = max(floor(ratio N), 1)
    l_j <- l_j + beta |logp_j - old_logp_j| for j in I                            A, logp, l: [B,T] at weight != 0

The paper's policy loss under it is the **unclipped** -A r, for all tokens: set `objective: {low: 1, high: 1e9}` (as
`recipes/explore/kl_cov_quickstart.yaml` does); with another objective the penalty comes on top of that one.
|log-ratio| has gradient 0 at ratio 1: with one update a step, on-policy, the method does nothing.

Differs from the released code (PRIME-RL/Entropy-Mechanism-of-RL, verl): means and top-k are global over the update, as
in the paper's equations (the code works per micro-batch, where max(., 1) picks far more than `ratio`); equal
covariances are told apart by a hash of (seed, row, token). `ratio` is a fraction (the code's is a percentage), and
`ratio: 0` turns the method off. Defaults are those of the paper's 7B run; 32B: 2e-4. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.explore.hashing import largest_subset
from rlvr.objectives.covariance import token_covariances
from rlvr.seeds import stable_seed

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`ratio` of the update's trained tokens; `beta` in loss units per nat."""

    ratio: float = Field(2e-3, ge=0.0, le=1.0)
    beta: NonNegativeFloat = 1.0


class KlCov(AddOn):
    """loss += beta |logp - old_logp| at the tokens of largest covariance."""

    kind = "kl_cov"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    measures: ClassVar[frozenset[str]] = frozenset({"logp"})
    selects: ClassVar[bool] = True
    wants_updates: ClassVar[bool] = True

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at the picked tokens; `active` counts them."""
        if not self.config.ratio or not self.config.beta or not update.rows:
            return None
        trained = update.trained("logp")
        cov = token_covariances([r.advantages for r in update.rows], [s["logp"] for s in update.stats], trained)
        tokens = sum(int(use.sum()) for use in trained)
        marks = largest_subset(
            cov,
            trained,
            keys=[row.key for row in update.rows],
            k=max(int(self.config.ratio * tokens), 1),
            seed=stable_seed(update.seed, self.name),
        )
        mean = sum(float(c[use].sum()) for c, use in zip(cov, trained, strict=True)) / max(tokens, 1)
        return Knobs(marks=marks, metrics={"active": float(sum(mark.sum() for mark in marks)), "cov_mean": mean})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        if view.mark is None:
            return loss
        return loss + self.config.beta * view.mark * (view.logp - view.old_logp).abs()
