"""ROVER (2509.24981): learn the value of the uniformly random policy; the policy's log-ratios are its Q.

    Q_t = rho (logp_t - old_logp_t)
    y_t = A_t + rho sg(mu_{t+1} - old mu_{t+1})        0 for the second term where token t+1 is not trained
    l_t = (Q_t - y_t)^2                                                       all [B,T]

mu_t is the mean over the vocabulary of log pi(. | tokens before t), and A the normalised reward on **every** token,
which `advantage: grpo` gives (the paper's for mathematics; `dr_grpo` is its choice for Countdown). There is no clip and
no reference. At the old weights the gradient is REINFORCE's, doubled. Reduction: the mean over all tokens of the update
(the released code: per micro-batch). mu comes from float32 log-probabilities in the forward. The released code's
optional clip of log-ratios and its factor on the second term (1 in its scripts) are left out. Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """`rho` is the temperature between log-ratios and values."""

    rho: PositiveFloat = 1.0


class Rover(Surrogate):
    """loss = (rho log-ratio - target)^2."""

    kind = "rover"
    Config = Config
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "old_mean_logp"})
    token_reads: ClassVar[frozenset[str]] = frozenset({"mean_logp"})

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Selections that say "no loss here" with an advantage of 0, or weigh the loss by weighing the advantage."""
        found = list(super().problems(recipe))
        if odd := [spec.kind for spec in recipe.explore if spec.kind in ("forking_tokens", "egsw")]:
            why = "an advantage of 0 is a target of 0, and no token without loss"
            found.append(f"'rover' regresses on the advantage: {why}; leave out {', '.join(odd)}")
        return found

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module; `next_value` is the second term of the target."""
        from torch.nn.functional import pad

        from rlvr.objectives.ratio import log_ratio

        rho = self.config.rho
        change = view.streams["mean_logp"] - view.streams["old_mean_logp"]  # 0 where not trained: the view is guarded
        following = rho * pad(change[:, 1:], (0, 1))
        q = rho * log_ratio(view.logp, view.old_logp)
        return (q - view.advantages - following).square(), {"next_value": following}
