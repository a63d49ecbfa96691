"""Truncated importance sampling of whole responses (as in verl; no paper of its own).

    w_i = min(prod_t rho_t, cap),    rho = exp(old_logp - behaviour_logp)     over the trained tokens of row i

The exact weight of a response under the old policy, cut at `cap`; on every token of the row, detached. A product over a
long response is far from 1 even where each token's gap is small: expect most weights near 0 or at the cap. verl's guide
gives caps from 2 to 10. Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOnConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`cap`: the largest weight of a response."""

    cap: PositiveFloat = 2.0


class SequenceTis(Correction):
    """w = min(prod rho, cap)."""

    kind = "sequence_tis"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch
        from rlvr.objectives.ratio import bounded_exp, row_sum

        log_rho = mismatch(view)
        weight = bounded_exp(row_sum(log_rho, view.mask)).clamp(max=self.config.cap).expand_as(log_rho)
        truncated = (weight >= self.config.cap).to(weight.dtype)
        return weight, {"correction": weight, "correction_truncated": truncated}
