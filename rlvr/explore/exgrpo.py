"""ExGRPO (2510.02245): half of the prompts come from a pool of half-solved ones, each with one earlier right answer.

    pool: task -> its right responses, since a draw with 0 < right < n of its n fresh ones; one with n of n retires it
    p(task) ~ N(right of G; G/2, 1) over buckets, uniform within one;   o* = the pool's response of lowest entropy now
    group = {y_1 .. y_(G-1)} fresh, o*                                  A: the recipe's estimator over all G
    l_t = -A f(r_t) at the tokens of o*,   f(r) = r / (r + beta),   r_t = exp(logp_t - behaviour logp_t)        [B,T]

The behaviour log-probs are those of the weights that sampled o*, so r is exact at any age; no clip applies, and what
the objective, a KL and the add-ons listed before this one made of those tokens is replaced. All other tokens keep
the recipe's objective. Replay starts for good once a step's pass rate reaches `start`. All stored responses of a task
go through the forward at the start of the step; the one of lowest mean token entropy stays. Draws take pool tasks in
turns (exactly `ratio` of consecutive ones), independently of each other, so a task can come twice in a step.
Differs: at most `keep` responses of a task are stored, the newest (no bound there); a step with a huge gradient is
clipped like any other (the released code skips it above a norm of 500). The paper's groups are not filtered: with
`keep: informative` a dropped group neither enters the pool nor retires its task. A bucket is the share of right
answers in the latest draw that had any. `ratio: 0` turns it off.
Fidelity: close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Knobs, Sample, Update
from rlvr.rollout.replay import Entry, ReplayStore, ages_of, counted, marks_of, replayed, unusable, without
from rlvr.seeds import stable_seed
from rlvr.types import Group, Metrics, Task, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe


COMPARING = ("diver", "length_reward", "rep_exp")  # rewards that depend on the other rows of a group


class Config(AddOnConfig):
    """`ratio` of the draws replay, from a pass rate of `start` on; `beta` shapes; `keep` responses a task."""

    ratio: float = Field(0.5, ge=0.0, le=1.0)
    start: float = Field(0.35, ge=0.0, le=1.0)
    beta: PositiveFloat = 0.1
    keep: PositiveInt = 8


class Exgrpo(AddOn):
    """The last row of a replayed group is an earlier right answer; loss = -A f(r) on it."""

    kind = "exgrpo"
    Config = Config
    selects: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.needs = frozenset({"entropy"}) if config.ratio else frozenset()
        self.store = ReplayStore(per_task=config.keep)
        self.rates: dict[str, float] = {}  # task -> share of its latest fresh responses that was right
        self.retired: set[str] = set()
        self.started = False
        self._tasks: dict[str, Task] = {}  # of the run, by id
        self._spoiled: dict[int, str] = {}  # draw -> task of rows that were refused: `observe` forgets them
        self._drawn: dict[int, Task] = {}  # draw -> the task that replaced its own, until it is observed

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A group needs fresh responses beside the replayed one; a bonus that compares rows must not see them all."""
        kinds = [spec.kind for spec in recipe.explore]
        before = kinds[: kinds.index(self.kind)] if self.kind in kinds else []
        found = [] if recipe.group > 2 else [f"{self.kind!r} needs group >= 3, got {recipe.group}; raise it"]
        return found + [
            f"{kind!r} stands before it in explore and would compare all stored responses: move it behind {self.kind!r}"
            for kind in COMPARING
            if kind in before
        ]

    def sampler(self, sample: Sample) -> Sample:
        """Replay draws: another task, one fresh response less, and the pool's responses behind the fresh ones."""

        async def replaying(draw: Draw) -> Group:
            if draw.first:  # a later round of a draw: fresh responses to the same task
                return await sample(replace(draw, task=self._drawn.get(draw.index, draw.task)))
            self._drawn.pop(draw.index, None)  # of an attempt that ran into its time limit
            entries = self._chosen(draw)
            if not entries:
                return await sample(draw)
            task = self._task(entries[0].task, draw)
            usable = [] if task is None else self._usable(entries, task, draw)
            counts = {f"{self.name}/refused": float(len(entries) - len(usable))}
            if len(usable) < len(entries):
                self._spoiled[draw.index] = entries[0].task
            if not usable or task is None:
                return _counted(await sample(draw), counts)
            self._drawn[draw.index] = task
            fresh = await sample(replace(draw, task=task, group=draw.group - 1))
            rows = (*fresh.trajectories, *replayed(usable, source=self.name))
            counts |= {f"{self.name}/replayed": 1.0, f"{self.name}/candidates": float(len(usable))}
            return _counted(fresh.with_(trajectories=rows), counts)

        return replaying if self.config.ratio else sample

    def _task(self, name: str, draw: Draw) -> Task | None:
        assert draw.ctx is not None, "replay is sampled within a run"
        if not self._tasks:
            self._tasks = {task.key: task for task in draw.ctx.tasks}
        return self._tasks.get(name)

    def _usable(self, entries: Sequence[Entry], task: Task, draw: Draw) -> list[Entry]:
        assert draw.ctx is not None
        prompt = draw.ctx.encode(task)
        return [e for e in entries if unusable(e.row, prompt=prompt, decode=draw.ctx.decode) is None]

    def _chosen(self, draw: Draw) -> tuple[Entry, ...]:
        """The stored responses of this draw's task from the pool; none where it is a plain draw."""
        ratio = self.config.ratio
        if not self.started or math.floor((draw.index + 1) * ratio) == math.floor(draw.index * ratio):
            return ()
        buckets: dict[int, list[str]] = {}
        for task in self.store.tasks:
            buckets.setdefault(bucket(self.rates[task], draw.group), []).append(task)
        if not buckets:
            return ()
        rng = np.random.default_rng(stable_seed(self.seed, self.name, draw.index))
        numbers = sorted(buckets)
        number = int(rng.choice(numbers, p=bucket_weights(numbers, group=draw.group)))
        return self.store.of(buckets[number][int(rng.integers(len(buckets[number])))])

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Of the stored responses in a group the one of lowest entropy under the weights of this step stays."""
        return [self._one(g) if g.counts.get(f"{self.name}/candidates", 0.0) > 1 else g for g in groups]

    def _one(self, group: Group) -> Group:
        mine = [i for i, t in enumerate(group.trajectories) if t.source == self.name]
        best = min(mine, key=lambda i: (_entropy(group.trajectories[i]), i), default=None)
        return without(group, [i for i in mine if i != best])

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at replayed tokens; `active` counts them."""
        if not self.config.ratio:
            return None
        marks = marks_of(update.rows, self.name)
        return Knobs(marks=marks, metrics={"active": float(sum(mark.sum() for mark in marks))})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """-A f(r) at marked tokens."""
        import torch

        from rlvr.objectives.ratio import log_ratio, shaped_ratio

        if view.mark is None:
            return loss
        weight = shaped_ratio(log_ratio(view.logp, view.behaviour_logp), beta=self.config.beta)
        return torch.where(view.mark > 0, -view.advantages * weight, loss)

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """The pool takes this step's right answers. Counts groups `replayed`, rows `refused`, what the pool holds."""
        if not self.config.ratio:
            return {}
        fresh = [[t for t in g.trajectories if t.source == "policy" and _judged(t)] for g in groups]
        right = [[t for t in rows if t.verdict and t.verdict.correct] for rows in fresh]
        last = max((g.draw for g in groups), default=-1)
        for draw, task in self._spoiled.items():
            if draw <= last:  # what is sampled for later steps meanwhile is told by them
                self.store.evict(task=task)
        self._spoiled = {draw: task for draw, task in self._spoiled.items() if draw > last}
        step = max((int(t.version.max()) for rows in fresh for t in rows), default=0)
        for group, rows, solved in zip(groups, fresh, right, strict=True):
            self._update(group, rows, solved, step=step)
        self._drawn = {draw: task for draw, task in self._drawn.items() if draw > last}
        total = sum(map(len, fresh))
        rate = sum(map(len, right)) / total if total else 0.0
        self.started = self.started or (total > 0 and rate >= self.config.start)
        said = {key: counted(groups, self.name, key) for key in ("replayed", "refused")}
        said |= {"pool": float(len(self.store.tasks)), "stored": float(len(self.store))}
        said |= {"retired": float(len(self.retired)), "started": float(self.started)}
        return said | ages_of(groups, self.name)

    def _update(self, group: Group, fresh: Sequence[Trajectory], right: Sequence[Trajectory], *, step: int) -> None:
        task = group.task.key
        if fresh and len(right) == len(fresh):
            self.retired.add(task)
        if task in self.retired:
            self.store.evict(task=task)
        if not right or task in self.retired:
            return
        for row in right:
            self.store.add(Entry(task=task, step=step, row=row, score=row.verdict.score if row.verdict else 0.0))
        self.rates[task] = len(right) / len(fresh)

    def state_dict(self) -> dict[str, Any]:
        """The pool, the rates of its tasks, what is retired, whether replay has started."""
        rates = {task: self.rates[task] for task in self.store.tasks}
        state = {"store": self.store.state_dict(), "rates": rates, "retired": sorted(self.retired)}
        return state | {"started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state:
            self.store.load_state_dict(state["store"])
            self.rates, self.retired = dict(state["rates"]), set(state["retired"])
            self.started = state["started"]


def bucket(rate: float, group: int) -> int:
    """The share of right responses as a number of `group`, from 1 to group - 1."""
    return min(max(math.floor(rate * group + 0.5), 1), group - 1)


def bucket_weights(numbers: Sequence[int], *, group: int) -> np.ndarray:
    """Probability of each bucket: N(number; group / 2, 1), normalised over those given."""
    density = np.exp(-0.5 * (np.asarray(numbers, dtype=np.float64) - group / 2) ** 2)
    return density / density.sum()


def _entropy(t: Trajectory) -> float:
    trained = t.weight != 0
    return float(t.streams["entropy"][trained].mean(dtype=np.float64)) if trained.any() else math.inf


def _judged(t: Trajectory) -> bool:
    return t.verdict is not None and t.verdict.error is None


def _counted(group: Group, counts: Metrics) -> Group:
    return group.with_(counts={**group.counts, **counts})
