"""HAPO (2505.11225): shorter than this question's own history of right answers is better.

    f(l, h) = cos(pi/2 * l/h) if l < 2h else -1
    r_i = max(-0.7, f(len_i, h))  if row i is correct,   min(0, f(len_i, h)) otherwise;   0 while h is unknown
    R_i <- R_i + w * r_i                                                                  R [G]

h is the shortest (or the mean) length, in response tokens, of the question's right answers in earlier steps. It is
updated after the step, from all rows at once, so the order of rows is nothing to it; it is in the checkpoint, by
dataset and task id. With w <= 1 a right answer (>= 0.3) stays above a wrong one (<= 0).
Differs from the released code: the linear variant is left out. `initial` stands in for h before the first success
(the code's fixed h); null is the paper's rule, no length reward until then.
Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics, Task

FLOOR = -0.7  # of a right answer


class Config(AddOnConfig):
    """`w` is the weight of the length reward; 0 turns it off."""

    w: NonNegativeFloat = 1.0
    history: Literal["min", "mean"] = "min"
    initial: PositiveFloat | None = None  # tokens


class HAPO(AddOn):
    """reward += w * length reward against the question's history."""

    kind = "hapo"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self._solved: dict[str, list[float]] = {}  # task -> [right answers, their tokens, the shortest]

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Shaped rewards with the length reward added; rows in error keep NaN."""
        if not self.config.w:
            return groups
        return [group.with_(rewards=(_shaped(group) + self._bonus(group)).astype(np.float32)) for group in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Updates the history. `active`: rows with a bonus that is not 0; `known`: questions with a history."""
        paid = np.concatenate([np.zeros(0, dtype=np.float32), *(self._bonus(group) for group in groups)])
        for group in groups:
            for t, right in zip(group.trajectories, group.correct, strict=True):
                if right:
                    seen = self._solved.setdefault(group.task.key, [0, 0, float("inf")])
                    seen[:] = [seen[0] + 1, seen[1] + t.response_len, min(seen[2], t.response_len)]
        paid = paid[paid != 0]
        mean = float(np.abs(paid).mean()) if len(paid) else 0.0
        return {"active": float(len(paid)), "bonus_abs_mean": mean, "known": float(len(self._solved))}

    def state_dict(self) -> dict[str, Any]:
        """The history of every question that was ever solved."""
        return {"solved": {key: list(seen) for key, seen in self._solved.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._solved = {key: list(seen) for key, seen in state["solved"].items()}

    def _history(self, task: Task) -> float | None:
        seen = self._solved.get(task.key)
        if seen is None:
            return self.config.initial
        return seen[2] if self.config.history == "min" else seen[1] / seen[0]

    def _bonus(self, group: Group) -> F32:
        h = self._history(group.task)
        if h is None:
            return np.zeros(len(group), dtype=np.float32)
        rows = zip(group.trajectories, group.correct, strict=True)
        scores = [length_reward(t.response_len, h, right=bool(right)) for t, right in rows]
        return np.where(group.valid, self.config.w * np.array(scores), 0.0).astype(np.float32)


def length_reward(length: float, h: float, *, right: bool) -> float:
    """The paper's r_l of one response; h > 0 tokens."""
    f = float(np.cos(np.pi / 2 * length / h)) if length < 2 * h else -1.0
    return max(FLOOR, f) if right else min(0.0, f)


def _shaped(group: Group) -> F32:
    return group.scores if group.rewards is None else group.rewards
