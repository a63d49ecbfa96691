"""GSPO (2507.18071): importance ratio and clip of the whole response, not of a token.

    s_i = exp(mean_t (logp - old_logp))                                       over the trained tokens of row i
    l   = max(-A s, -A clip(s, 1 - low, 1 + high))                            s [B,1], l [B,T]

`token: true` is GSPO-token: log s_it = sg(log s_i) + logp - sg(logp), the same value with each token's own gradient,
for advantages that differ from token to token. Reduction: the mean over responses. The bounds are the paper's, and
small because s is a geometric mean; with one update a step s = 1 and nothing is clipped. Differs from the released
code (verl): the reduction is the recipe's, and log s is clamped to [-20, 20] (there only above, at 10).
Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOnConfig
from rlvr.recipe import Reduction
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """s is clipped to [1 - `low`, 1 + `high`]; `token` gives each token its own gradient."""

    low: float = Field(3e-4, ge=0.0, le=1.0)
    high: NonNegativeFloat = 4e-4
    token: bool = False


class Gspo(Surrogate):
    """loss = max(-A s, -A clip(s)) with the response's ratio s."""

    kind = "gspo"
    Config = Config
    reduction: ClassVar[Reduction] = "sequence"
    wants_updates: ClassVar[bool] = True

    @property
    def per_response(self) -> bool:
        """Not in the token form."""
        return not self.config.token

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module; the metrics count the tokens of clipped responses."""
        from rlvr.objectives.ratio import clip_loss, log_ratio, row_mean

        c = self.config
        log_s = row_mean(log_ratio(view.logp, view.old_logp), view.mask).expand_as(view.logp)
        if c.token:
            log_s = log_s.detach() + view.logp - view.logp.detach()
        ratio = log_s.exp()
        out = clip_loss(ratio, view.advantages, low=c.low, high=c.high)
        return out.loss, {"clip_low": out.low, "clip_high": out.high, "sequence_ratio": ratio.detach()}
