"""RepExp (2510.11686): a response whose representation is unlike its siblings' earns more (elliptical bonus).

    phi_i [d]   mean of the reference model's last hidden states over response i, projected to d dimensions
    x_i    = phi_i - mean phi                                 over the rows of the group without error
    b_i    = x_i' (lambda I + sum_j x_j x_j')^-1 x_i          leverage; leave_one_out: b_i / (1 - b_i), j != i
    R_i <- R_i + coef b_i                                     in groups with a right answer                    R [G]

Leverages lie in [0, 1) and sum to less than G. With d far above G they are nearly equal: the signal is in what is left.
The states are those that predict the response's tokens (the paper's: those of the tokens, one place later). One sparse
projection serves the whole run (the code draws a new one with every call), so bonuses of different steps compare.
The frozen model is the recipe's reference; the paper's is Qwen2.5-7B-Instruct whatever is trained. The gate on groups
without a right answer is the code's default; where all are right credit does not divide the bonus by its own
standard deviation. It costs a forward of the reference a step. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics, stream

F64 = npt.NDArray[np.float64]


class Config(AddOnConfig):
    """`coef` scales the bonus, 0 turns it off; `lam` is the ridge; d 32 for short mathematics, 128 for long."""

    coef: NonNegativeFloat = 0.01
    form: Literal["leverage", "leave_one_out"] = "leverage"
    lam: PositiveFloat = 0.01
    d: PositiveInt = 32


class RepExp(AddOn):
    """reward += coef * elliptical bonus of the response's representation within its group."""

    kind = "rep_exp"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.stream = stream("ref_pooled_state", config.d)
        self.needs = frozenset({self.stream}) if config.coef else frozenset()

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the bonus added; rows in error keep NaN."""
        if not self.config.coef:
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows with a bonus; `bonus_abs_mean` over those; `gated`: groups without a right answer."""
        if not self.config.coef:
            return {}
        paid = np.concatenate([np.zeros(0, np.float32), *(self._bonus(group) for group in groups)])
        paid = paid[paid != 0]
        mean = float(np.abs(paid).mean()) if len(paid) else 0.0
        gated = sum(not group.correct.any() for group in groups)
        return {"active": float(len(paid)), "bonus_abs_mean": mean, "gated": float(gated)}

    def _bonus(self, group: Group) -> F32:
        out = np.zeros(len(group), dtype=np.float32)
        if group.correct.any():
            states = [t.streams[self.stream] for t, ok in zip(group.trajectories, group.valid, strict=True) if ok]
            config = self.config
            out[group.valid] = config.coef * elliptical(np.array(states), lam=config.lam, form=config.form)
        return out


def elliptical(states: npt.NDArray[Any], *, lam: float, form: str = "leverage") -> F64:
    """b [G] of states [G,d], in float64 by the Gram matrix: diag(K (K + lam I)^-1); 0 where a state is not finite."""
    x = states.astype(np.float64)
    known = np.isfinite(x).all(axis=1)
    out = np.zeros(len(x))
    if not known.any():
        return out
    centred = x[known] - x[known].mean(axis=0)
    gram = centred @ centred.T
    h = np.clip(np.diag(np.linalg.solve(gram + lam * np.eye(len(gram)), gram)), 0.0, None)
    out[known] = h / (1.0 - h) if form == "leave_one_out" else h
    return out


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
