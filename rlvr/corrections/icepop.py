"""IcePop, masked importance sampling token by token (ring-1T's report, 2510.18855; "token MIS" in verl and slime).

    w = rho where low <= rho <= high, else 0,    rho = exp(old_logp - behaviour_logp)        [B,T], detached

A token on which trainer and sampler disagree by more than the window teaches nothing; it stays in the denominators, as
in AReaL (verl takes it out, which enlarges the rest). `{low: 0, high: 5}` is AReaL's filter for decoupled PPO.
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
    """The window of rho, ends included."""

    low: NonNegativeFloat = 0.5
    high: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _around_one(self) -> Self:
        if not self.low <= 1.0 <= self.high:
            raise ValueError(f"the window of ratios must hold 1: got low={self.low} and high={self.high}")
        return self


class IcePop(Correction):
    """w = rho inside the window, else 0."""

    kind = "icepop"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch

        rho = mismatch(view).exp()
        kept = ((rho >= self.config.low) & (rho <= self.config.high)).to(rho.dtype)
        return kept * rho, {"correction": kept * rho, "correction_rejected": 1.0 - kept}
