"""Truncated importance sampling, token by token (as in verl, OpenRLHF, slime and TRL; no paper of its own).

    w = min(exp(old_logp - behaviour_logp), cap)                              [B,T], detached

`cap` 2 is slime's and verl's (TRL 3; OpenRLHF also bounds it below, at 0.5). The weight is 1 where the behaviour
log-prob is unknown. Fidelity: exact.
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
    """`cap`: the largest weight."""

    cap: PositiveFloat = 2.0


class Tis(Correction):
    """w = min(rho, cap)."""

    kind = "tis"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch

        weight = mismatch(view).exp().clamp(max=self.config.cap)
        truncated = (weight >= self.config.cap).to(weight.dtype)
        return weight, {"correction": weight, "correction_truncated": truncated}
