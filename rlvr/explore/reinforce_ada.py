"""Reinforce-Ada (2510.04996): a question is sampled in rounds until it has both right and wrong answers to learn from.

    round 1 .. rounds: `group` samples more of every question that has not left
        balanced: it leaves with n/2 right and n/2 wrong;    positive: with one right
    trained on: n/2 right and n/2 wrong, the earliest of each, the one class filled up from the other
    baseline (and standard deviation): from **all** samples of the question

All samples are rows of the group, those beyond the n with weight 0: recorded, verified, in the baseline and in no loss.
Set `advantage: {kind: grpo, std: false}`, the paper's. "Right" is the verifier's word; the paper's threshold on the
reward is 0.7. A question that never leaves keeps the mixture that it has (`keep: informative` drops it when all are
wrong). Rows in error count in neither class and are never among the n; what another add-on put in is in no class either
and keeps its weight. Defaults are the paper's with `group: 8`: at most 32 samples. The rows of weight 0 still pass
through the trainer's forward. Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample
from rlvr.rollout.groups import joined
from rlvr.rollout.rounds import round_problems
from rlvr.types import Bool, Group, Metrics

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """`n` rows a question are trained on."""

    mode: Literal["balanced", "positive"] = "balanced"
    n: int = Field(4, ge=2, multiple_of=2)
    rounds: PositiveInt = 4


class ReinforceAda(AddOn):
    """Rounds of samples, n of which are trained on."""

    kind = "reinforce_ada"
    Config = Config

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Another method of rounds, or a tree."""
        return round_problems(self.kind, recipe)

    def sampler(self, sample: Sample) -> Sample:
        """Rounds until the question may leave; then weight 0 on what is beyond n."""

        async def adaptive(draw: Draw) -> Group:
            group = await sample(draw)
            first = len(group)
            for round_ in range(1, self.config.rounds):
                mine = group.judged
                if done(group.correct & mine, mine, n=self.config.n, mode=self.config.mode):
                    break
                at = draw.first + round_ * draw.group
                group = joined(group, await sample(replace(draw, first=at)))
            return self._chosen(group, extra=len(group) - first)

        return adaptive

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows sampled in later rounds or not trained on; `extra`, `unused`: each; `balanced`: groups so."""
        extra, unused = (sum(g.counts.get(f"{self.name}/{key}", 0.0) for g in groups) for key in ("extra", "unused"))
        balanced = sum(done(g.correct & g.judged, g.judged, n=self.config.n, mode="balanced") for g in groups)
        return {"active": extra + unused, "extra": extra, "unused": unused, "balanced": float(balanced)}

    def _chosen(self, group: Group, *, extra: int) -> Group:
        mine = group.judged
        kept = chosen(group.correct & mine, mine, n=self.config.n)
        unused = mine & ~kept
        rows = (
            replace(t, weight=np.zeros_like(t.weight)) if out else t
            for t, out in zip(group.trajectories, unused, strict=True)
        )
        said = {f"{self.name}/extra": float(extra), f"{self.name}/unused": float(unused.sum())}
        return group.with_(trajectories=tuple(rows), counts={**group.counts, **said})


def done(correct: Bool, valid: Bool, *, n: int, mode: str) -> bool:
    """Whether a question with these answers [G] leaves."""
    right, wrong = int(correct.sum()), int((valid & ~correct).sum())
    return right >= 1 if mode == "positive" else min(right, wrong) >= n // 2


def chosen(correct: Bool, valid: Bool, *, n: int) -> Bool:
    """[G] the at most n rows that are trained on: half right and half wrong, filled up from the other class."""
    right, wrong = np.flatnonzero(correct), np.flatnonzero(valid & ~correct)
    rights = min(len(right), max(n // 2, n - len(wrong)))
    kept = np.zeros(len(correct), dtype=bool)
    kept[right[:rights]] = kept[wrong[: n - rights]] = True
    return kept
