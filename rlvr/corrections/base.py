"""A correction weighs the loss for the gap between the sampler and the trainer: what `objective.correction` names.

The sampler never agrees with the trainer exactly, and with `max_lag` above 0 it has older weights. A correction is a
detached weight per token from rho = exp(old_logp - behaviour_logp) (see `rlvr.objectives.importance`); it multiplies
the surrogate, once. Tokens whose weight is 0 stay in the denominators: otherwise rejecting some would enlarge the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rlvr.explore.base import AddOnConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class Correction:
    """Base class. Subclasses set `kind` and `Config` and override `weights`. Stateless, and built on every rank."""

    kind: ClassVar[str] = ""
    Config: ClassVar[type[AddOnConfig]] = AddOnConfig
    weighs: ClassVar[bool] = True  # by rho; a mask of 0 and 1 leaves the distribution of what it keeps as it was

    def __init__(self, config: Any) -> None:
        self.config = config

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """Detached weights [B,T], and detached metrics [B,T] by name (an indicator is reported as a share).

        `view` is guarded. Where nothing is known of the behaviour log-prob the weight is 1.
        """
        raise NotImplementedError

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """What in the recipe cannot work with it, in words for people."""
        return []
