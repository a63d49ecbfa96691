"""SAPO (2511.20347): a soft gate on the ratio instead of a clip.

    f(r) = (4 / tau) sigmoid(tau (r - 1)),    tau = tau_pos where A > 0, else tau_neg
    l    = -A f(r)                                                            all [B,T]

df/dr = 4 p (1 - p) with p = sigmoid(tau (r - 1)): 1 at r = 1, so the on-policy gradient is the plain policy gradient,
and it fades smoothly on both sides. Defaults are the paper's for Qwen3-30B-A3B. Reduction: the mean over responses of
their token means. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from rlvr.explore.base import AddOnConfig
from rlvr.recipe import Reduction
from rlvr.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """Steepness of the gate for tokens with A > 0 and with A <= 0; larger is closer to a clip."""

    tau_pos: PositiveFloat = 1.0
    tau_neg: PositiveFloat = 1.05


class Sapo(Surrogate):
    """loss = -A f(r) with a sigmoid gate f."""

    kind = "sapo"
    Config = Config
    reduction: ClassVar[Reduction] = "sequence"
    wants_updates: ClassVar[bool] = True

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module; `gate` is df/dr, the share of the gradient that is left."""
        import torch

        from rlvr.objectives.ratio import log_ratio

        positive = view.advantages > 0
        tau = torch.where(positive, self.config.tau_pos, self.config.tau_neg).to(view.logp.dtype)
        p = torch.sigmoid(tau * (log_ratio(view.logp, view.old_logp).exp() - 1.0))
        return -view.advantages * (4.0 / tau) * p, {"gate": (4.0 * p * (1.0 - p)).detach()}
