"""Masked importance sampling of whole responses (TRL's `sequence_mask`; no paper of its own).

    w_i = prod_t rho_t where that is <= cap, else 0                           over the trained tokens of row i

A response that the old policy would give far more often than the sampler did is left out rather than cut; its tokens
stay in the denominators. `cap` 3 is TRL's. On every token of the row, detached. Fidelity: exact.
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
    """`cap`: responses with a larger weight are left out."""

    cap: PositiveFloat = 3.0


class SequenceMis(Correction):
    """w = prod rho up to the cap, else 0."""

    kind = "sequence_mis"
    Config = Config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the module."""
        from rlvr.objectives.importance import mismatch
        from rlvr.objectives.ratio import bounded_exp, row_sum

        log_rho = mismatch(view)
        rho = bounded_exp(row_sum(log_rho, view.mask)).expand_as(log_rho)
        kept = (rho <= self.config.cap).to(rho.dtype)
        return kept * rho, {"correction": kept * rho, "correction_rejected": 1.0 - kept}
