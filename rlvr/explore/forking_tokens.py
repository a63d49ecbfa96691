"""80/20, forking tokens (2506.01939): train on the tokens of high entropy alone.

    K = the ceil(rho N) tokens of largest entropy among the N trained tokens of the update,   current policy
    A[b,t] <- A[b,t] * 1[(b,t) in K] * (sum of all weights / sum of the weights in K)        [B,T], before the surrogate

So the mean of the policy loss is over the kept tokens, as in the paper; a KL in the loss and other add-ons keep all
tokens and their own mean. With a reduction other than `token` the same factor applies. The paper stands on DAPO.

Differs from the released code, after the paper ("top tokens of the batch"): the selection is global over the update
(the code's is per micro-batch), and equal entropies are told apart by a hash of (seed, row, token). TRL's
`top_entropy_quantile` keeps the full denominator: there the loss is rho times as large. `rho: 1` is no selection.
Fidelity: exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.explore.hashing import largest_subset
from rlvr.seeds import stable_seed

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`rho`: the fraction of tokens that is trained on."""

    rho: float = Field(0.2, gt=0.0, le=1.0)


class ForkingTokens(AddOn):
    """advantage = 0 at all but the tokens of highest entropy; the denominator follows."""

    kind = "forking_tokens"
    Config = Config
    measures: ClassVar[frozenset[str]] = frozenset({"entropy"})
    selects: ClassVar[bool] = True
    reweighs: ClassVar[bool] = True

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 on K; `active` counts it, `entropy_min` is the lowest entropy in it."""
        if self.config.rho == 1.0 or not update.rows:
            return None
        trained = update.trained("entropy")
        values = [stats["entropy"] for stats in update.stats]
        marks = largest_subset(
            values,
            trained,
            keys=[row.key for row in update.rows],
            k=math.ceil(self.config.rho * sum(int(use.sum()) for use in trained)),
            seed=stable_seed(update.seed, self.name),
        )
        total = sum(float(row.weight.sum()) for row in update.rows)
        kept = sum(float((mark * row.weight).sum()) for mark, row in zip(marks, update.rows, strict=True))
        lowest = [float(v[mark > 0].min()) for v, mark in zip(values, marks, strict=True) if mark.any()]
        if kept <= 0:
            return None
        return Knobs(
            scalars={"factor": total / kept},
            marks=marks,
            metrics={"active": float(sum(mark.sum() for mark in marks)), "entropy_min": min(lowest)},
        )

    def token_advantage(self, view: TokenView) -> Tensor:
        """See the module."""
        return view.advantages if view.mark is None else view.advantages * view.mark * view.knobs["factor"]
