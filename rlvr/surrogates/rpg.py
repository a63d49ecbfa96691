"""RPG: regularised policy gradients (2505.17508). The KL to pi_old is part of the gradient, with its importance factor.

    w = exp(logp - old_logp),  A' = A - beta log w (urkl; the other forms: `rlvr.objectives.rpg`), detached     [B,T]
    reinforce:       l = dual clip of (w, A'): -A' w grad log pi where no bound is reached, else no gradient
    differentiable:  l = dual clip of (w, A) + beta D(w), the KL outside the clip

pi_ref is the iteration's pi_old, so no reference model is loaded, and with one update a batch (w = 1) `ufkl` and `urkl`
are plain policy gradient. The bounds look at the sign of A', as the paper's clip does with the regularised advantage.
The paper writes `reinforce` as -sg(.) log pi; that has the gradient of the form here and another value, and only the
value that is reported differs. Released code (complex-reasoning/RPG): it branches on A log pi against a coefficient,
clips w before the log, and as it stands nothing calls it: the scripts run plain dual-clip PPO. The weights and
their gradients are the paper's (finite differences agree); the clip is the specification's reading of it, and clipping
the policy part of `differentiable` is ours. With the default beta of 1e-4 the effect is that of the clip.
Reduction: token mean. The scripts use the group mean without std as baseline: `advantage: {kind: grpo, std: false}`.
Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOnConfig
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`form` of the KL and its coefficient `beta`; clip bounds as of `clip`, with the scripts' defaults."""

    form: Literal["fkl", "ufkl", "rkl", "urkl"] = "urkl"
    style: Literal["reinforce", "differentiable"] = "reinforce"
    beta: NonNegativeFloat = 1e-4
    low: float = Field(0.2, ge=0.0, le=1.0)
    high: NonNegativeFloat = 0.28
    dual: float | None = Field(10.0, gt=1.0)


class RPG(Surrogate):
    """loss = dual clip of the regularised advantage."""

    kind = "rpg"
    Config = Config

    @property
    def bounds(self) -> tuple[float, float]:
        """The recipe's."""
        return self.config.low, self.config.high

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Any]]:
        """See the module; `rpg_kl` is D per token."""
        from rlvr.objectives.ratio import clip_loss, log_ratio
        from rlvr.objectives.rpg import penalty, regularised

        c = self.config
        log_w = log_ratio(view.logp, view.old_logp)
        divergence = penalty(log_w, form=c.form)
        advantages = view.advantages
        if c.style == "reinforce":
            advantages = regularised(advantages, log_w.detach(), form=c.form, beta=c.beta)
        out = clip_loss(log_w.exp(), advantages, low=c.low, high=c.high, dual=c.dual)
        loss = out.loss if c.style == "reinforce" else out.loss + c.beta * divergence
        said = {"clip_low": out.low, "clip_high": out.high, "clip_dual": out.dual, "rpg_kl": divergence.detach()}
        return loss, said
