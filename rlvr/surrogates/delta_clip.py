"""Two-sided clip of INTELLECT-2 (2505.07291): PPO's clip with a cap on the ratio itself.

    r = exp(logp - old_logp)
    l = max(-A min(r, delta), -A clip(r, 1 - low, 1 + high))                  all [B,T]

PPO leaves the loss of a token with A < 0 unbounded as its ratio grows; here it ends, and its gradient with it, at
`delta` (4 in the paper and in TRL). With `delta` above 1 + `high` this is the dual clip at `delta`; below, it also
bounds tokens with A > 0. Reduction: the mean over all tokens. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """The ratio is capped at `delta` first, then clipped to [1 - `low`, 1 + `high`]."""

    low: float = Field(0.2, ge=0.0, le=1.0)
    high: NonNegativeFloat = 0.2
    delta: PositiveFloat = 4.0


class DeltaClip(Surrogate):
    """loss = max(-A min(r, delta), -A clip(r))."""

    kind = "delta_clip"
    Config = Config
    wants_updates: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """The recipe's."""
        return self.config.low, self.config.high

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.ratio import clip_loss, log_ratio

        c = self.config
        ratio = log_ratio(view.logp, view.old_logp).exp()
        out = clip_loss(ratio.clamp(max=c.delta), view.advantages, low=c.low, high=c.high)
        at_delta = (ratio.detach() > c.delta).to(ratio.dtype)
        return out.loss, {"clip_low": out.low, "clip_high": out.high, "clip_delta": at_delta}
