"""PPO's clipped surrogate (1707.06347), with clip-higher (2503.14476) and the dual clip (1912.09729).

    r = exp(logp - old_logp)
    l = max(-A r, -A clip(r, 1 - low, 1 + high))                              all [B,T]
    l = min(l, -A dual)                            where A < 0, with `dual` > 1

`low` = `high` is PPO, `high` > `low` is DAPO's clip-higher. Reduction: the mean over all tokens of the update (DAPO);
the GRPO paper's is `reduction: sequence`, Dr.GRPO's `reduction: constant`. The dual clip is off unless the recipe sets
it (verl has it on, at 3). There is no value function, and log-ratios are clamped to [-20, 20]. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOnConfig
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """The ratio is clipped to [1 - `low`, 1 + `high`]; `dual: null` turns the dual clip off."""

    low: float = Field(0.2, ge=0.0, le=1.0)
    high: NonNegativeFloat = 0.2
    dual: float | None = Field(None, gt=1.0)


class Clip(Surrogate):
    """loss = max(-A r, -A clip(r))."""

    kind = "clip"
    Config = Config

    @property
    def bounds(self) -> tuple[float, float]:
        """The recipe's."""
        return self.config.low, self.config.high

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Any]]:
        """See the module; the metrics mark tokens that a bound took the gradient from."""
        from rlvr.objectives.ratio import clip_loss, log_ratio

        c = self.config
        ratio = log_ratio(view.logp, view.old_logp).exp()
        out = clip_loss(ratio, view.advantages, low=c.low, high=c.high, dual=c.dual)
        return out.loss, {"clip_low": out.low, "clip_high": out.high, "clip_dual": out.dual}
