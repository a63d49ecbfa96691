"""EGSW, entropy-guided sequence weighting (2503.22456): within a group, weigh what is good and uncertain.

    w_i[t] = G exp((A_i + alpha H_i) / P) / sum_j exp((A_j + alpha H_j) / P)        j over the group's G rows
    A_i[t] <- w_i[t] A_i[t]                                         before the surrogate; w detached, current entropy

"trajectory": A_i and H_i are means over the trained tokens of row i, one weight a response. "step": the t-th trained
tokens of the group's rows are weighed against each other, among the rows that have one, and G is their number.
Weighing the advantage weighs the policy gradient and nothing else (a KL in the loss keeps its size).

The formula is a summary's: we found neither the full text nor code. Ours: the factor G, so that P -> infinity is plain
GRPO (the formula's weights sum to 1), and the defaults of alpha and P, to which the paper calls the method sensitive.
Note that exp(A/P) meets A again in the gradient: failures count less than successes, on purpose, and the estimate is
not unbiased. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.types import F32, Bool

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView

F64 = npt.NDArray[np.float64]


class Config(AddOnConfig):
    """`alpha` in units of advantage per nat; `P` is the temperature of the weights; `level`: one per row or token."""

    alpha: NonNegativeFloat = 0.5
    P: PositiveFloat = 1.0
    level: Literal["trajectory", "step"] = "trajectory"


class Egsw(AddOn):
    """advantage *= softmax weight within the group."""

    kind = "egsw"
    Config = Config
    measures: ClassVar[frozenset[str]] = frozenset({"entropy"})
    selects: ClassVar[bool] = True

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are the weights; `active` counts tokens whose weight is not 1."""
        trained = update.trained("entropy")
        scores = [
            (row.advantages + self.config.alpha * stats["entropy"])[use].astype(np.float64)
            for row, stats, use in zip(update.rows, update.stats, trained, strict=True)
        ]
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(update.rows):
            if trained[i].any():
                groups.setdefault(row.group, []).append(i)
        weights: dict[int, F64] = {}
        for members in groups.values():
            own = [scores[i] / self.config.P for i in members]
            made = step_weights(own) if self.config.level == "step" else trajectory_weights(own)
            weights |= dict(zip(members, made, strict=True))
        marks = [_placed(weights.get(i), use) for i, use in enumerate(trained)]
        if not weights:
            return None
        flat = np.concatenate(list(weights.values()))
        active = int((np.abs(flat - 1.0) > 1e-6).sum())
        return Knobs(marks=marks, metrics={"active": float(active), "weight_max": float(flat.max())})

    def token_advantage(self, view: TokenView) -> Tensor:
        """See the module."""
        return view.advantages if view.mark is None else view.advantages * view.mark


def trajectory_weights(scores: Sequence[F64]) -> list[F64]:
    """One weight for all tokens of a row, from (A + alpha H) / P [n] of each row's trained tokens; mean over rows 1."""
    weights = _softmax(np.array([s.mean() for s in scores])) * len(scores)
    return [np.full(len(s), w) for s, w in zip(scores, weights, strict=True)]


def step_weights(scores: Sequence[F64]) -> list[F64]:
    """A weight for each trained token, against the tokens of the other rows at the same place; mean over them 1."""
    out = [np.ones(len(s)) for s in scores]
    for t in range(max(len(s) for s in scores)):
        alive = [i for i, s in enumerate(scores) if len(s) > t]
        weights = _softmax(np.array([scores[i][t] for i in alive])) * len(alive)
        for i, w in zip(alive, weights, strict=True):
            out[i][t] = w
    return out


def _softmax(x: F64) -> F64:
    e = np.exp(x - x.max())
    return e / e.sum()


def _placed(weights: F64 | None, trained: Bool) -> F32:
    mark = np.zeros(len(trained), dtype=np.float32)
    if weights is not None:
        mark[trained] = weights
    return mark
