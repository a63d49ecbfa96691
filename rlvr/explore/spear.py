"""SPEAR (2509.22601): self-imitation. Good rows of earlier steps train in an update of their own, with new advantages.

    store   <- rows of the step whose mean advantage is above 0;    history <- the mean reward of each of its groups
    A'_i    = R_i - P50(history)                                    on every trained token of a stored row, [L]
    replay  as soon as more than `size` stored rows have A' > 0: those, in one update; then the store is empty
    l[b,t] <- w(k) l[b,t] there,    w(k) = coef (1 - cos(pi min(k, rise) / rise)) / 2,    k = steps done

The loss of a replayed token is the recipe's, with what the add-ons listed before this one made of it, against the
policy that sampled it: r = exp(logp - behaviour logp), exact at any age, so no correction for the sampler's gap is
left to apply. Normalisers are those of that update, AdamW steps once more whatever w is, and the means of `train/`
are over all updates, this one among them. Rows of more than `tolerate` steps ago leave the store, and the
history holds the last `baseline` group means, of the policy's own rows.
The base (Dr.BoT) is the recipe's: clip 0.2 / 0.28, no KL, `dr_grpo`, `reduction: constant`, Clip-Cov before this one.
Differs: the released code counts and replays whole groups, floors them to a multiple of 32, waits for 1.5 times the
buffer and takes the trainer's log-probs of the step as behaviour; here rows are counted, `size` is what it waits for,
and the sampler's log-probs are. No bonus for tool calls (there are none), no filter of groups by their spread.
`coef: 0` turns it off. Fidelity: close.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Context, Knobs, Update
from rlvr.rollout.replay import Entry, ReplayStore, replayed, unusable
from rlvr.types import F32, Group, Metrics, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """More than `size` good rows fire a replay; `tolerate` and `rise` in steps, `baseline` in groups."""

    size: PositiveInt = 2048
    tolerate: PositiveInt = 10
    baseline: PositiveInt = 10240
    coef: NonNegativeFloat = 1.0
    rise: PositiveInt = 200


class Spear(AddOn):
    """An update more, over the good rows of the last steps, as soon as there are enough of them."""

    kind = "spear"
    Config = Config
    selects: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.store = ReplayStore()
        self.history: list[float] = []  # mean rewards of groups, oldest first
        self.steps = 0  # done
        self._refused = 0  # rows of this step's replay that do not fit the run: `observe` tells

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A store that can never have enough rows."""
        c, most = self.config, self.config.tolerate * recipe.prompts * recipe.group
        why = f"{c.tolerate} steps have {most} responses, and it waits for more than size: {c.size} good ones"
        return [f"{self.kind!r} never replays: {why}; lower size"] if c.coef and most <= c.size else []

    def replay(self, ctx: Context) -> Sequence[Group]:
        """What is due, a group for each task."""
        tasks = {task.key: task for task in ctx.tasks}
        due, groups, baseline = self._due(), list[Group](), self._baseline()
        by_task: dict[str, list[Entry]] = {}
        for entry in due:
            by_task.setdefault(entry.task, []).append(entry)
        for key in sorted(by_task.keys() & tasks):
            prompt = ctx.encode(tasks[key])
            fit = [e for e in by_task[key] if unusable(e.row, prompt=prompt, decode=ctx.decode) is None]
            rows, rewards = replayed(fit, source=self.name), np.array([e.score for e in fit], np.float32)
            advantages = tuple(_on_tokens(e.score - baseline, e.row) for e in fit)
            group = Group(tasks[key], -1 - len(groups), rows, rewards, advantages, prompt_len=len(prompt))
            groups += [group] if fit else []
        self._refused = len(due) - sum(map(len, groups))
        return groups

    def _baseline(self) -> float:
        return float(np.median(self.history)) if self.history else 0.0

    def _due(self) -> list[Entry]:
        """The rows of A' > 0 if they are enough, by step and task; the same until `observe`."""
        baseline = self._baseline()
        good = [e for e in self.store.all() if e.score > baseline]
        return good if len(good) > self.config.size else []

    def knobs(self, update: Update) -> Knobs | None:
        """`weight` is w(k) in the update over the replayed rows; `active` counts their tokens."""
        if not self.config.coef:
            return None
        if not any(row.source == self.name for row in update.rows):
            return Knobs(metrics={"active": 0.0})
        weight = weight_at(self.steps, coef=self.config.coef, rise=self.config.rise)
        active = float(sum((row.weight != 0).sum() for row in update.rows))
        return Knobs(scalars={"weight": weight}, metrics={"active": active, "weight": weight})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """w(k) l in that update."""
        weight = view.knobs.get("weight")
        return loss if weight is None else weight * loss

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Forgets what was replayed and what is old, stores what was good. Tells what was `replayed`, and its age."""
        if not self.config.coef:
            return {}
        due = self._due()
        said = {"replayed": float(len(due) - self._refused), "refused": float(self._refused)}
        said |= {"age": float(np.mean([self.steps - e.step for e in due]))} if due else {}
        self._refused = 0
        if due:
            self.store.evict()
        for group in groups:
            self._take(group)
        self.history = self.history[-self.config.baseline :]
        self.steps += 1
        self.store.evict(before=self.steps - self.config.tolerate)
        return said | {"stored": float(len(self.store)), "baseline": self._baseline()}

    def _take(self, group: Group) -> None:
        assert group.rewards is not None and group.advantages is not None, "observed after credit"
        if group.judged.any():
            self.history.append(float(group.rewards[group.judged].mean(dtype=np.float64)))
        for row, reward, advantage in zip(group.trajectories, group.rewards, group.advantages, strict=True):
            trained = row.weight != 0
            if trained.any() and advantage[trained].mean(dtype=np.float64) > 0:
                self.store.add(Entry(task=group.task.key, step=self.steps, row=row, score=float(reward)))

    def state_dict(self) -> dict[str, Any]:
        """What is stored, the history of group means, how many steps are done."""
        return {"store": self.store.state_dict(), "history": list(self.history), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state:
            self.store.load_state_dict(state["store"])
            self.history, self.steps = list(state["history"]), state["steps"]


def weight_at(step: int, *, coef: float, rise: int) -> float:
    """coef times half a cosine from 0 at step 0 to 1 at `rise` and after it."""
    return coef * (1.0 - cos(pi * min(step / rise, 1.0))) / 2


def _on_tokens(value: float, row: Trajectory) -> F32:
    return np.where(row.weight != 0, value, 0.0).astype(np.float32)
