"""Objectives over whole groups, without a group in a micro-batch.

L is a mean over the responses of an update, and depends on the policy through one score a response, s_i: a sum of
log-probabilities. So dL/dtheta = sum_i c_i ds_i/dtheta with c_i = dL/ds_i. The scores are measured, c_i is computed
once on the controller, and the micro-batches back-propagate c_i logp. Exact, whatever a micro-batch holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from rlvr.explore.base import Knobs, Update
from rlvr.recipe import Reduction
from rlvr.surrogates.base import Surrogate
from rlvr.types import F32, Metrics, Row

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """What a group objective says of one update; rows that it leaves out have 0 in both."""

    slope: F64  # [rows] dl_i/ds_i summed over the group: the row's token gradient is slope / rows
    loss: F64  # [rows] l_i, for the report
    metrics: Metrics = field(default_factory=dict)


class GroupSurrogate(Surrogate):
    """Base class. Subclasses override `coefficients`; advantages are not used."""

    reduction: ClassVar[Reduction] = "sum"
    group_objective: ClassVar[bool] = True
    measures: ClassVar[frozenset[str]] = frozenset({"logp"})
    fewest: ClassVar[int] = 2

    def coefficients(self, update: Update) -> Coefficients:
        """From measured scores to slopes, over all rows of the update."""
        raise NotImplementedError

    def knobs(self, update: Update) -> Knobs:
        """Marks hold the slope on every token; `loss` is the objective's own value, a mean over responses."""
        said = self.coefficients(update)
        marks = [np.full(len(row.weight), c, np.float32) for row, c in zip(update.rows, said.slope, strict=True)]
        rows = max(sum(bool(row.weight.any()) for row in update.rows), 1)
        own = {"active": float(np.count_nonzero(said.slope)), "loss": float(said.loss.sum()) / rows}
        return Knobs(marks=marks, metrics=own | said.metrics)

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """c logp: the gradient is the objective's, the value is not."""
        if view.mark is None:
            raise ValueError(f"objective {self.kind!r} has no coefficients for this update: `knobs` comes first")
        return view.mark * view.logp, {}


def sequence_scores(update: Update, minus: str) -> F64:
    """s_i = sum_t (logp - the row's stream `minus`) over trained tokens, [rows], at the current weights.

    A token with a log-prob that is not finite is left out, as it is in the loss.
    """
    both = zip(update.rows, update.stats, strict=True)
    return np.array([_score(row, stats["logp"], row.streams[minus]) for row, stats in both], dtype=np.float64)


def _score(row: Row, logp: F32, other: F32) -> float:
    use = (row.weight != 0) & np.isfinite(logp) & np.isfinite(other)
    return float((logp[use].astype(np.float64) - other[use]).sum())


def members(rows: Sequence[Row]) -> list[npt.NDArray[np.intp]]:
    """Positions of the rows of each group that are trained on and have a reward, in the order of the groups."""
    found: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.weight.any() and np.isfinite(row.reward):
            found.setdefault(row.group, []).append(i)
    return [np.array(at, dtype=np.intp) for at in found.values()]
