"""Decoupled PPO (2110.00641; for asynchronous RL in AReaL, 2505.24298): behaviour and proximal policy are two.

    u = exp(logp - old_logp),    w = sg(exp(old_logp - behaviour_logp))
    l = w max(-A u, -A clip(u, 1 - low, 1 + high))                            all [B,T]

The proximal policy is the trainer's at the start of the step, the behaviour policy the sampler's at whatever version
produced the token. w is the weight that `objective.correction` would bring, here without a bound, so a correction on
top is refused: it would count the gap twice. To bound it take `clip` with `tis`, or with `icepop` at
`{low: 0, high: 5}`, which is AReaL's old filter. Reduction: the mean over all tokens. Fidelity: exact.
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
    """u is clipped to [1 - `low`, 1 + `high`]."""

    low: float = Field(0.2, ge=0.0, le=1.0)
    high: NonNegativeFloat = 0.2


class Decoupled(Surrogate):
    """loss = sg(old / behaviour) max(-A u, -A clip(u))."""

    kind = "decoupled"
    Config = Config
    off_policy: ClassVar[bool] = True
    no_correction: ClassVar[str] = "its loss holds the ratio of old to behaviour policy already"

    @property
    def bounds(self) -> tuple[float, float]:
        """The recipe's."""
        return self.config.low, self.config.high

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch
        from rlvr.objectives.ratio import clip_loss, log_ratio

        ratio, weight = log_ratio(view.logp, view.old_logp).exp(), mismatch(view).exp()
        out = clip_loss(ratio, view.advantages, low=self.config.low, high=self.config.high)
        return weight * out.loss, {"clip_low": out.low, "clip_high": out.high, "correction": weight}
