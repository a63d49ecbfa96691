"""Veto: one impossible token throws its whole response out (slime, verl; no paper of its own).

    w_it = min(rho_it, cap),  and 0 on the whole row i if any rho_it < floor        rho = exp(old_logp - behaviour_logp)

A token that the trainer finds ten thousand times less likely than the sampler did is a sign of a corrupted response (a
bad kernel, a wrong cache), not of noise. The other responses get token TIS. Rejected tokens stay in the
denominators. Fidelity: exact.
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
    """`floor`: the smallest ratio that a response may hold; `cap`: the largest weight."""

    floor: PositiveFloat = 1e-4
    cap: PositiveFloat = 2.0


class Veto(Correction):
    """w = min(rho, cap), 0 in rows with a ratio below the floor."""

    kind = "veto"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch

        rho = mismatch(view).exp()
        bad = ((rho < self.config.floor) & (view.mask > 0)).any(dim=1, keepdim=True)
        kept = (~bad).to(rho.dtype).expand_as(rho)
        weight = kept * rho.clamp(max=self.config.cap)
        return weight, {"correction": weight, "correction_rejected": 1.0 - kept}
