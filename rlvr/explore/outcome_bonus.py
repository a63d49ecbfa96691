"""Outcome-based exploration (2509.06941): a bonus for final answers that were seldom given to this question.

    A[i,t] <- A[i,t] + coef * b_i               at the trained tokens of row i, after the group's normalisation
    ucb        b_i = min(1, N(x, a_i)^-1/2)     1 where N = 0
    ucb_mean   b_i - mean over the group        sums to 0: an answer is pushed away from by its neighbours
    ucb_con    b_i - baseline                   an answer seen more than 1 / baseline^2 times is pushed down
    batch      -#{j != i : a_j = a_i} / G       no memory: duplicates within the group lose

a_i is the verifier's canonical answer key, N(x, a) how often it was given to question x in earlier steps: counts grow
after the step, from all rows at once, and are in the checkpoint. All unreadable answers of a question are one answer,
else "no answer" would be new for ever. Rows in error have no bonus and count nowhere; nor are answers counted that the
policy did not give to the question now (a demonstration, a hinted or a replayed row). Only trained groups are counted:
what dynamic sampling drops (`keep: informative`) leaves no trace, so use `keep: all`. The bonus comes after
normalisation, so in a group of equal scores it stays of size `coef` and is no full-size advantage.
Defaults are a reviewer's table of the paper's (coef 0.2; baseline 0.5 for medium and 1 for easy data). No code was
released. Fidelity: close.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from rlvr.explore.base import AddOn, AddOnConfig
from rlvr.types import F32, Group, Metrics

UNREADABLE = ""  # the answer key of every response without one


class Config(AddOnConfig):
    """`coef` scales the bonus, 0 turns it off; `baseline` is b0 of `ucb_con`."""

    form: Literal["ucb", "ucb_mean", "ucb_con", "batch"] = "ucb_mean"
    coef: NonNegativeFloat = 0.2
    baseline: float = Field(0.5, gt=0.0, le=1.0)


class OutcomeBonus(AddOn):
    """advantage += coef * novelty of the final answer."""

    kind = "outcome_bonus"
    Config = Config

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self._counts: dict[str, Counter[str]] = {}  # question -> answer -> times given

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Advantages with the bonus at every trained token."""
        return [self._paid(group) for group in groups] if self.config.coef else groups

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Counts the step's answers. `active`: rows with a bonus that is not 0; `answers`: distinct ones so far."""
        paid = [self.config.coef * self._bonus(group) for group in groups]
        flat = np.concatenate([np.zeros(0, np.float32), *paid])
        for group in groups:
            seen = self._counts.setdefault(group.task.key, Counter())
            seen.update(answer for answer, mine in zip(answers(group), group.judged, strict=True) if mine)
        moved = flat[flat != 0]
        return {
            "active": float(len(moved)),
            "bonus_abs_mean": float(np.abs(moved).mean()) if len(moved) else 0.0,
            "answers": float(sum(map(len, self._counts.values()))),
        }

    def state_dict(self) -> dict[str, Any]:
        """Every count."""
        return {"counts": {question: dict(seen) for question, seen in self._counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._counts = {question: Counter(seen) for question, seen in state["counts"].items()}

    def _bonus(self, group: Group) -> F32:
        seen = self._counts.get(group.task.key, Counter())
        config = self.config
        return outcome_bonus(answers(group), group.valid, seen, form=config.form, baseline=config.baseline)

    def _paid(self, group: Group) -> Group:
        assert group.advantages is not None  # the estimator comes first
        bonus = self.config.coef * self._bonus(group)
        rows = zip(group.advantages, group.trajectories, bonus, strict=True)
        return group.with_(advantages=tuple((a + b * (t.weight != 0)).astype(np.float32) for a, t, b in rows))


def outcome_bonus(
    given: Sequence[str], valid: Sequence[bool] | np.ndarray, seen: Counter[str], *, form: str, baseline: float
) -> F32:
    """b [G] of one group (see the module), 0 where not `valid`; `seen` counts earlier steps."""
    ok = np.asarray(valid, dtype=bool)
    if form == "batch":
        here = Counter(answer for answer, v in zip(given, ok, strict=True) if v)
        b = np.array([-(here[answer] - 1) / len(given) for answer in given])
    else:
        b = np.array([max(seen[answer], 1) ** -0.5 for answer in given])
    if form == "ucb_mean" and ok.any():
        b = b - b[ok].mean()
    elif form == "ucb_con":
        b = b - baseline
    return np.where(ok, b, 0.0).astype(np.float32)


def answers(group: Group) -> list[str]:
    """The canonical answer of every row."""
    verdicts = (t.verdict for t in group.trajectories)
    return [v.answer_key if v and v.parsed and v.answer_key is not None else UNREADABLE for v in verdicts]
