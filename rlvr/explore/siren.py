"""SIREN (2509.25133): hold the entropy of the uncertain tokens where it was at the start.

    H[b,t] = entropy of pi restricted to its top-p nucleus and renormalised                              [B,T]
    M_b    = {t : H[b,t] >= the q-quantile of row b's trained tokens}               the peak tokens of a response
    h      = 1/B' sum_b 1/|M_b| sum_{t in M_b} H[b,t]                          B' rows with a trained token
    L     <- L + beta * (h - h_0)^2                     h_0: h of the first step, then fixed

L is the loss of the whole update, whatever its reduction. (h - h_0)^2 is no sum over tokens: h is measured first, and
its part of the loss is then beta (h - h_0)^2 in value and 2 beta (h - h_0) grad h in gradient, token by token, so the
result depends on no micro-batch.

Differs from the released code (Linn3a/siren), after the paper: the nucleus includes the token that crosses p (the code
leaves it out, so a token of probability above p has entropy 0 there); h is over the update, not over a micro-batch; the
whole vocabulary is searched, not its first 10,000. h_0 is the mean over the updates of the first step. There is no
term in the first step. The paper's base is Dr.GRPO with a symmetric clip of 0.28. Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig, Knobs, Update
from rlvr.types import F32, Bool, Group, Metrics, stream

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView


class Config(AddOnConfig):
    """`p` of the nucleus; `q`: the peak tokens are those from this quantile of their response on; `beta`: weight."""

    p: float = Field(0.8, gt=0.0, le=1.0)
    q: float = Field(0.8, ge=0.0, lt=1.0)
    beta: NonNegativeFloat = 0.005


class Siren(AddOn):
    """loss += beta (h - h_0)^2."""

    kind = "siren"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.stream = stream("top_p_entropy", config.p)
        self.measures = frozenset({self.stream}) if config.beta else frozenset()
        self.token_needs = self.measures
        self.anchor: float | None = None  # h_0

    def knobs(self, update: Update) -> Knobs | None:
        """Marks carry each peak token's share of h; `active` counts peak tokens that are pushed."""
        if not self.config.beta:
            return None
        trained = update.trained(self.stream)
        values = [stats[self.stream] for stats in update.stats]
        peaks = [peak_tokens(v, use, q=self.config.q) for v, use in zip(values, trained, strict=True)]
        alive = sum(bool(peak.any()) for peak in peaks)
        if not alive:
            return None
        h = sum(float(v[peak].mean()) for v, peak in zip(values, peaks, strict=True) if peak.any()) / alive
        gap = 0.0 if self.anchor is None else h - self.anchor
        marks = [
            _share(peak, row.weight, scale) / np.float32(alive)
            for peak, row, scale in zip(peaks, update.rows, update.scale, strict=True)
        ]
        active = float(sum(int(peak.sum()) for peak in peaks)) if gap else 0.0
        penalty = self.config.beta * gap**2
        return Knobs(
            scalars={"slope": 2.0 * self.config.beta * gap, "penalty": penalty},
            marks=marks if gap else None,
            metrics={"active": active, "h": h, "penalty": penalty},
        )

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """See the module: sum_b scale sum_t weight * mark is 1, so the penalty's value is counted once."""
        if view.mark is None:
            return loss
        h = view.streams[self.stream]
        return loss + view.mark * (view.knobs["slope"] * (h - h.detach()) + view.knobs["penalty"])

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """The first step sets h_0."""
        if self.anchor is None:
            self.anchor = metrics.get(f"{self.name}/h")
        return {} if self.anchor is None else {"anchor": self.anchor}

    def state_dict(self) -> dict[str, Any]:
        """h_0."""
        return {"anchor": self.anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.anchor = state["anchor"]


def peak_tokens(values: F32, trained: Bool, *, q: float) -> Bool:
    """Trained tokens [L] whose value is at least the q-quantile (linear) of the row's trained tokens."""
    if not trained.any():
        return trained
    return trained & (values >= np.quantile(values[trained], q))


def _share(peak: Bool, weight: F32, scale: float) -> F32:
    """[L] such that scale * sum_t weight * share * x is the mean of x over the peak tokens."""
    share = np.zeros(len(peak), dtype=np.float32)
    if peak.any():
        share[peak] = 1.0 / (scale * weight[peak] * int(peak.sum()))
    return share
