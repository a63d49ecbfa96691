"""Geometric filter, "seq-mask-tis" (ProRL v2's recipe in NeMo-RL; OpenRLHF; no paper of its own).

    w_it = rho_it where low <= exp(mean_t log rho_it) <= high, else 0        mean over the trained tokens of row i

Responses on which trainer and sampler disagree on average are left out whole; the others are weighed token by
token, without a cap, as in OpenRLHF. The window is NeMo-RL's for ProRL v2.1, and narrow: in float32 with `max_lag: 0`
it keeps nearly all, in bfloat16 look at `correction_rejected`. Rejected tokens stay in the denominators.
Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOnConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """The window of a response's geometric mean ratio, ends included."""

    low: NonNegativeFloat = 0.999
    high: PositiveFloat = 1.002

    @model_validator(mode="after")
    def _around_one(self) -> Self:
        if not self.low <= 1.0 <= self.high:
            raise ValueError(f"the window of ratios must hold 1: got low={self.low} and high={self.high}")
        return self


class Geometric(Correction):
    """w = rho in rows whose geometric mean ratio is inside the window, else 0."""

    kind = "geometric"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch
        from rlvr.objectives.ratio import row_mean

        log_rho = mismatch(view)
        mean = row_mean(log_rho, view.mask).exp()
        kept = ((mean >= self.config.low) & (mean <= self.config.high)).to(log_rho.dtype).expand_as(log_rho)
        return kept * log_rho.exp(), {"correction": kept * log_rho.exp(), "correction_rejected": 1.0 - kept}
