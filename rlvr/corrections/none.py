"""No correction: every weight is 1.

The gap between sampler and trainer stays in the gradient. Right where a surrogate holds the ratio itself (`decoupled`)
or needs none (a regression). Fidelity: exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rlvr.corrections.base import Correction
from rlvr.explore.base import AddOnConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """No options."""


class NoCorrection(Correction):
    """w = 1."""

    kind = "none"
    Config = Config
    weighs: ClassVar[bool] = False

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """Ones."""
        import torch

        return torch.ones_like(view.old_logp), {}
