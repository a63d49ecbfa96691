"""CISPO of MiniMax-M1 (2506.13585): clip the weight, keep every token's gradient.

    w = sg(clip(exp(logp - old_logp), 1 - low, 1 + high))
    l = -w A logp                                                             all [B,T]

Unlike PPO's clip no token loses its gradient. The value of the loss means nothing; its gradient does. Reduction: the
mean over all tokens. Differs: `high` bounds the weight at 1 + `high`, as in the paper and verl (TRL's number is the
bound itself). The paper has no lower bound in effect and gives no numbers: `low: 1` is no lower bound, and `high: 4`
is the bound of 5 that ScaleRL (2510.13786) found for it. Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOnConfig
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """The weight is clipped to [1 - `low`, 1 + `high`]."""

    low: float = Field(1.0, ge=0.0, le=1.0)
    high: NonNegativeFloat = 4.0


class Cispo(Surrogate):
    """loss = -sg(clip(r)) A logp."""

    kind = "cispo"
    Config = Config
    wants_updates: ClassVar[bool] = True

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module; the metrics mark clipped weights."""
        from rlvr.objectives.ratio import log_ratio

        low, high = 1.0 - self.config.low, 1.0 + self.config.high
        ratio = log_ratio(view.logp, view.old_logp).detach().exp()
        marks = {"clip_low": (ratio < low).to(ratio.dtype), "clip_high": (ratio > high).to(ratio.dtype)}
        return -ratio.clamp(low, high) * view.advantages * view.logp, marks
