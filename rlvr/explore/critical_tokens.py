"""A KL that holds where the reference is certain: critical tokens, "Ignore the KL penalty!" (2502.06533).

    c_t = (1 + log max_v pi_ref(v) / log V)^power                     pi_ref at `temperature`: 1 one-hot, 0 uniform
    l_t <- l_t + coef c_t KL_t(pi_theta, pi_ref)                                                              [B,T]

Where the reference hesitates the policy may explore; where it is sure the policy must stay. The certainty is that of
the released code (jvasso/llm-rl-arithmetic, `negentropy_max_prob`), an approximation of the paper's normalised negative
entropy. `power: 0` is the plain KL of `kl:` (leave `kl.coef` at 0 with this add-on, or the two add up).

The defaults are the paper's, for GPT-2 on additions with a small vocabulary. Mind the power: with V = 151,936, 150
leaves .881 of the KL at a token with max pi_ref = .99, .264 at .9, .0105 at .7. The term takes the objective's
reduction; there it is a mean over tokens. `temperature` multiplies the sampling temperature; there it stands alone. The
code's PPO variant *subtracts* the term from the loss, which rewards drifting away, and its k3 lets a gradient through
pi_ref / pi; here the term is added, as in its A2C variant. k1 is left out: its gradient has mean zero. Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.types import stream

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`coef` of the KL, 0 turns it off; `power` of the certainty; `temperature` of the reference, relative."""

    coef: NonNegativeFloat = 5.0
    power: NonNegativeFloat = 150.0
    temperature: PositiveFloat = 4.0
    estimator: Literal["k2", "k3"] = "k2"


class CriticalTokens(AddOn):
    """loss += coef * certainty^power * KL."""

    kind = "critical_tokens"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.certainty = stream("ref_certainty", config.temperature)
        self.needs = frozenset({"ref_logp", self.certainty})

    def knobs(self, update: Update) -> Knobs:
        """`active`: the trained tokens, each counted by its weight c."""
        if not self.config.coef:
            return Knobs(metrics={"active": 0.0})
        trained = update.trained(self.certainty, old=True)
        weights = (
            (row.streams[self.certainty][use] ** self.config.power).sum()
            for row, use in zip(update.rows, trained, strict=True)
        )
        return Knobs(metrics={"active": float(sum(weights))})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module."""
        from rlvr.objectives.kl import kl_penalty

        c = self.config
        if not c.coef:
            return loss
        assert view.ref_logp is not None
        kl = kl_penalty(view.logp, view.ref_logp, estimator=c.estimator)
        return loss + c.coef * view.streams[self.certainty] ** c.power * kl
