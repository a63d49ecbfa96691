"""A surrogate is the policy loss that `objective.kind` names: an add-on with a `loss` of its own.

On the ranks it turns one micro-batch into losses per token; on the controller it may use the hooks of an add-on
(`needs`, `measures`, `knobs`, `prepare`, `state_dict`). An objective over a whole group needs no group in a
micro-batch: it measures the scores s_i of all rows (`measures`), computes c_i = dL/ds_i in `knobs`, puts c_i on every
token of row i as its mark, and returns `view.mask * c * (the token's share of s)` from `loss`: the gradient of
sum_i c_i s_i is the gradient of L. Such a surrogate sets `reduction = "sum"` and counts L as a mean over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, ClassVar

from rlvr.explore.base import AddOn
from rlvr.recipe import Reduction

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class Surrogate(AddOn):
    """Base class. Subclasses set `kind`, `Config` and `reduction` and override `loss`.

    Its `name` is always "objective": the key of its knobs and marks, and the prefix of what `knobs` reports.
    """

    reduction: ClassVar[Reduction] = "token"  # the paper's, where the recipe says nothing
    group_objective: ClassVar[bool] = False  # over whole groups and rewards: advantages and selections mean nothing
    off_policy: ClassVar[bool] = False  # its loss accounts for samples of older weights by itself
    no_correction: ClassVar[str] = ""  # why `objective.correction` must not be applied to it
    fewest: ClassVar[int] = 1  # the size of the smallest group that it can work with

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of a clip of the token's ratio, for methods that spare clipped tokens; infinite: no clip."""
        return inf, inf

    @property
    def per_response(self) -> bool:
        """Whether its ratio is one number a response: the loss at any token has the gradient of all of them."""
        return False

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B,T] to be minimised (weight and scale not applied), and detached metrics [B,T] by name.

        `view` is guarded: every value is finite, and 0 where a token is not trained on.
        """
        raise NotImplementedError

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A correction that would be wrong; a reduction that a group objective does not have."""
        found = []
        if self.no_correction and recipe.objective.correction.kind != "none":
            found.append(
                f"{self.kind!r} takes no correction: {self.no_correction}; set objective.correction.kind: none"
            )
        if self.group_objective and recipe.objective.reduction not in (None, self.reduction):
            given = f"got reduction: {recipe.objective.reduction}"
            found.append(f"{self.kind!r} is a mean over responses by its definition, {given}; remove the line")
        return found
