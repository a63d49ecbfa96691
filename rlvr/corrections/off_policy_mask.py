"""Off-policy sequence mask of DeepSeek-V3.2 (2512.02556).

    w_i = 0 where A_i < 0 and mean_t (behaviour_logp - logp) > delta, else 1        over the known tokens of row i

A wrong response that the current policy would hardly give any more is not pushed down further: it says little, and its
gradient is large. Responses with a positive advantage are always kept. Uses the current log-probs, detached, so it also
sees what the updates of this step did. No ratio is applied beside it. The report gives no `delta`; 0.5 is TRL's
suggestion. A_i is the mean over the row's tokens. Masked tokens stay in the denominators. Fidelity: close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOnConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`delta`: nats a token by which the policy may have moved away from what it sampled."""

    delta: PositiveFloat = 0.5


class OffPolicyMask(Correction):
    """w = 0 on bad responses that the policy has left, else 1."""

    kind = "off_policy_mask"
    Config = Config
    weighs: ClassVar[bool] = False

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.ratio import row_mean

        known = view.mask * (view.known > 0)
        moved = row_mean(view.behaviour_logp - view.logp.detach(), known)
        bad = (row_mean(view.advantages, view.mask) < 0) & (moved > self.config.delta)
        kept = (~bad).to(view.old_logp.dtype).expand_as(view.old_logp)
        return kept, {"correction": kept, "correction_rejected": 1.0 - kept}
