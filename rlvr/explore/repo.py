"""RePO (2506.09340): earlier responses to the same prompt, right or wrong, beside those of the group.

    J = mean_on min(r A, clip(r) A) + coef mean_off min(r' A', clip(r') A'),      r'_t = exp(logp_t - behaviour logp_t)

Each task keeps its newest `size` responses with their rewards and behaviour log-probs. Once there are `k`, a draw of
the task gets `k` of them, those of before the step: the newest (`recent`), those of highest reward, random ones, the
`k` with the largest variance of rewards, or `all`. `split` gives them a mean and standard deviation of their own
(`Trajectory.adv_group`; an estimator over the whole batch knows no such groups), else one over all rows. The clip is
the recipe's. Both means are of their own: the loss of the other rows, with what the add-ons listed before this one made
of it, is scaled as if they stood alone (by their share of the update's weight, which with `reduction: constant` is a
share of tokens). The KL is on the fresh rows alone.
Differs: replay begins at `k` stored responses (the released default waits for 16 of at most 8, so never replays);
strategy and k of the paper's runs are not in the released code: `recent`, 4. `coef: 0` turns it off.
Fidelity: close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Context, Knobs, Update
from rlvr.rollout.replay import Entry, ReplayStore, ages_of, counted, marks_of, replayed, unusable
from rlvr.seeds import stable_seed
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from rlvr.objectives.view import TokenView
    from rlvr.recipe import Recipe

Strategy = Literal["recent", "highest", "random", "variance", "all"]


class Config(AddOnConfig):
    """`k` of at most `size` stored responses by `strategy`; `coef` of their loss; `split` normalises them apart."""

    k: PositiveInt = 4
    size: PositiveInt = Field(8, le=64)
    strategy: Strategy = "recent"
    coef: NonNegativeFloat = 1.0
    split: bool = True


class RePO(AddOn):
    """`k` earlier rows behind those of the group; a clipped loss to their own behaviour."""

    kind = "repo"
    Config = Config
    selects: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.store = ReplayStore(per_task=config.size)

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """More to replay than is stored."""
        c = self.config
        return [] if c.k <= c.size else [f"{self.kind!r}: k is {c.k} and size {c.size}, so it never replays; lower k"]

    async def guide(self, group: Group, ctx: Context) -> Group:
        """The group with stored rows behind its own."""
        entries = self.store.of(group.task.key)
        if not self.config.coef or len(entries) < self.config.k:
            return group
        prompt = ctx.encode(group.task)
        fit = [e for e in entries if unusable(e.row, prompt=prompt, decode=ctx.decode) is None]
        seed = stable_seed(ctx.seed, self.name, group.draw)
        rows = replayed(chosen(fit, self.config.k, strategy=self.config.strategy, seed=seed), source=self.name)
        if self.config.split:
            rows = tuple(replace(row, adv_group=self.name) for row in rows)
        said = {"replayed": len(rows), "refused": len(entries) - len(fit)}
        counts = {**group.counts, **{f"{self.name}/{key}": float(n) for key, n in said.items()}}
        return group.with_(trajectories=(*group.trajectories, *rows), counts=counts)

    def knobs(self, update: Update) -> Knobs | None:
        """Marks are 1 at replayed tokens; the scalars make two means of the one over all rows, and hold the clip."""
        if not self.config.coef:
            return None
        marks = marks_of(update.rows, self.name)
        active = float(sum(mark.sum() for mark in marks))
        shares = [float(scale) * float(row.weight.sum()) for scale, row in zip(update.scale, update.rows, strict=True)]
        parts = [(share, row.source == self.name) for share, row in zip(shares, update.rows, strict=True)]
        total, off = math.fsum(w for w, _ in parts), math.fsum(w for w, mine in parts if mine)
        on = math.fsum(w for w, mine in parts if not mine)
        scalars = {"on": total / on if active and on else 1.0, "off": total / off if off else 1.0}
        low, high = update.clip
        return Knobs(scalars=scalars | {"low": low, "high": high}, marks=marks, metrics={"active": active})

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """Both means; see the module."""
        from rlvr.objectives.ratio import clip_loss, log_ratio  # loads torch

        if view.mark is None:
            return loss
        knobs = view.knobs
        ratio = log_ratio(view.logp, view.behaviour_logp).exp()
        off = clip_loss(ratio, view.advantages, low=knobs["low"], high=knobs["high"]).loss
        return (knobs["on"] * loss).where(view.mark <= 0, self.config.coef * knobs["off"] * off)

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """Stores the step's rows. Counts rows `replayed` and `refused`; tells their `age`, and what is `stored`."""
        if not self.config.coef:
            return {}
        for group in groups:
            if group.counts.get(f"{self.name}/refused"):
                self.store.evict(task=group.task.key)
            rewards = np.zeros(len(group)) if group.rewards is None else group.rewards
            for row, reward in zip(group.trajectories, rewards, strict=True):
                step = int(row.version.max())
                self.store.add(Entry(task=group.task.key, step=step, row=row, score=float(reward)))
        said = {key: counted(groups, self.name, key) for key in ("replayed", "refused")}
        return said | {"stored": float(len(self.store))} | ages_of(groups, self.name)

    def state_dict(self) -> dict[str, Any]:
        """What is stored."""
        return {"store": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state:
            self.store.load_state_dict(state["store"])


def chosen(entries: Sequence[Entry], k: int, *, strategy: Strategy, seed: int) -> list[Entry]:
    """`k` of the entries (oldest first), fewer where there are not as many; of equals the newer.

    The subset of largest variance is some of the lowest and some of the highest rewards, so k + 1 subsets are enough.
    """
    if strategy == "all" or len(entries) <= k:
        return list(entries)
    if strategy == "recent":
        return list(entries[-k:])
    if strategy == "random":
        picked = np.random.default_rng(seed).choice(len(entries), size=k, replace=False)
        return [entries[i] for i in sorted(picked)]
    order = sorted(range(len(entries)), key=lambda i: (entries[i].score, i))
    subsets = [order[:low] + order[len(order) - (k - low) :] for low in range(k + 1)]
    best = subsets[0]
    if strategy == "variance":
        best = max(subsets, key=lambda s: float(np.var([entries[i].score for i in s])))
    return [entries[i] for i in sorted(best)]
