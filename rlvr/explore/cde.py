"""CDE, curiosity-driven exploration (2509.09675), the actor's bonus: a response that surprises the policy earns more.

    B_i = -(1/T_i) sum_t log pi_old(y_t)                            over the trained tokens of row i
    r_i <- r_i + w_k min(|r_i| / kappa, alpha B_i)                  r in [-1, 1]                    R [G]
    w_k = w (1 - floor(stairs k / steps) / stairs)                  step k; a staircase down to 0

pi_old is the trainer's policy at the start of the step, at the temperature of sampling (the paper's is 1), never the
sampler's truncated distribution. With kappa > 1 and w <= 1 the bonus changes no reward's sign.

The paper's rewards are -1 and 1: with 0 a wrong answer would earn nothing. `signed` says that the verifier's scores
are such; scores of 0 to 1 are taken as (r + 1) / 2, so that what is added is half of the above. Where all rows reach
the cap the bonus tells none from another: lower `alpha` when `capped` is near the number of rows. In a group of equal
raw scores the bonus is paid as in the paper, but credit does not divide it by its own standard deviation: it stays
below w / kappa. Differs: the stairs (number and length) are ours, the paper only names the shape. The critic's bonus
(the spread of several value heads) is left out, since there is no critic. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics, Trajectory

F64 = npt.NDArray[np.float64]
STREAM = "old_logp"


class Config(AddOnConfig):
    """`w` weighs the bonus, 0 turns it off; `steps` until it is gone, in `stairs` equal stairs (null: never)."""

    w: float = Field(1.0, ge=0.0, le=1.0)
    kappa: float = Field(3.0, ge=1.0)
    alpha: PositiveFloat = 1.0
    signed: bool = False
    steps: PositiveInt | None = None
    stairs: PositiveInt = 4


class CDE(AddOn):
    """reward += w * min(|reward| / kappa, alpha * mean negative log-prob)."""

    kind = "cde"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.needs = frozenset({STREAM}) if config.w else frozenset()
        self._step = 0

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the bonus added; rows in error keep NaN."""
        if not self._weight():
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Counts the step. `active`: rows with a bonus; `bonus_abs_mean` over them; `capped`: of them, at the cap."""
        weight = self._weight()
        paid = np.concatenate([np.zeros(0, np.float32), *(self._bonus(group) for group in groups if weight)])
        most = np.concatenate([np.zeros(0, np.float32), *(self._bonus(group, most=True) for group in groups if weight)])
        self._step += 1
        paid, most = paid[paid != 0], most[paid != 0]
        mean = float(np.abs(paid).mean()) if len(paid) else 0.0
        return {"active": float(len(paid)), "bonus_abs_mean": mean, "capped": float((paid == most).sum()), "w": weight}

    def state_dict(self) -> dict[str, Any]:
        """The steps so far."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._step = int(state["step"])

    def _weight(self) -> float:
        return staircase(self._step, start=self.config.w, steps=self.config.steps, stairs=self.config.stairs)

    def _bonus(self, group: Group, *, most: bool = False) -> F32:
        config, unit = self.config, 1.0 if self.config.signed else 0.5
        raw = group.scores.astype(np.float64)
        r = raw if config.signed else 2.0 * raw - 1.0
        b = np.array([np.inf if most else surprise(t) for t in group.trajectories])
        paid = unit * perplexity_bonus(r, b, w=self._weight(), kappa=config.kappa, alpha=config.alpha)
        return np.where(group.valid, paid, 0.0).astype(np.float32)


def perplexity_bonus(r: F64, b: F64, *, w: float, kappa: float, alpha: float) -> F64:
    """w min(|r| / kappa, alpha b) [G], with r in [-1, 1] and b >= 0."""
    return w * np.minimum(np.abs(r) / kappa, alpha * b)


def surprise(t: Trajectory) -> float:
    """Mean negative log-prob of the trained tokens (nats); 0 where a row has none."""
    logp = t.streams[STREAM][t.weight != 0]
    logp = logp[np.isfinite(logp)]
    return max(0.0, -float(logp.mean(dtype=np.float64))) if len(logp) else 0.0


def staircase(step: int, *, start: float, steps: int | None, stairs: int) -> float:
    """The weight at one step: `stairs` equal stairs from `start` to 0 at `steps`."""
    return start if steps is None else start * (1.0 - min(stairs * step // steps, stairs) / stairs)


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
