"""DARS (2508.13755): a hard question is sampled more often, so that it weighs as much as one of middling difficulty.

    u  = share of right answers among the first N (recipe's `group`); 0.5 / N where none is right
    S  = 2 u (1 - u)             what one sample adds to the sum of |A|                 (std: 2 sqrt(u (1 - u)))
    dN = ceil((h P - N S) / S)   more samples, where u < 1/2; at most n_max - N;        P = N / 2   (std: N)
    equal (the paper's ET): h = 1;   hard (HW): h = 2 (1 - u), hard questions weigh more

The group is then all N + dN responses, and its baseline their mean. `std` says whether the estimator divides by the
standard deviation: the paper's does not (`advantage: {kind: grpo, std: false}`). Rows in error, and those that another
add-on put in, count as neither right nor wrong; a group of nothing else is not sampled again. Both rounds use the
recipe's sampling (the released code sends the second through its validation settings). What the paper drops, groups all
wrong or all right, `keep: informative` drops. The size of the second round depends on the first, so the pooled mean is
slightly biased, as in the paper. The breadth half of the paper is the recipe's `prompts`, `minibatches: 1` and
`epochs`. Fidelity: exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample
from rlvr.rollout.groups import joined
from rlvr.rollout.rounds import round_problems
from rlvr.types import Group, Metrics

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """`n_max` is the largest group; the paper's: 32 with `equal`, 64 with `hard`."""

    schedule: Literal["equal", "hard"] = "equal"
    n_max: PositiveInt = 32
    std: bool = False


class DARS(AddOn):
    """A second round of samples for hard questions."""

    kind = "dars"
    Config = Config

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """An `n_max` that leaves no room; another method of rounds, or a tree."""
        found = []
        if self.config.n_max <= recipe.group:
            found.append(f"'dars' does nothing: n_max is {self.config.n_max} and group is {recipe.group}; raise n_max")
        return [*found, *round_problems(self.kind, recipe)]

    def sampler(self, sample: Sample) -> Sample:
        """N responses, then dN more where the question is hard."""

        async def adaptive(draw: Draw) -> Group:
            group = await sample(draw)
            config, mine = self.config, group.judged  # not what was replayed into it
            if not mine.any():
                return group
            u = float(group.correct[mine].mean())
            more = extra(u, draw.group, n_max=config.n_max, schedule=config.schedule, std=config.std)
            if not more:
                return group
            second = await sample(replace(draw, group=more, first=draw.first + draw.group))
            return joined(group, second.with_(counts={**second.counts, f"{self.name}/extra": float(len(second))}))

        return adaptive

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows of second rounds; `prompts` that had one; `saved`: of them, those solved in it alone."""
        extra_rows = [int(g.counts.get(f"{self.name}/extra", 0)) for g in groups]
        hard = [(g, n) for g, n in zip(groups, extra_rows, strict=True) if n]
        saved = sum(_late(g, n) for g, n in hard)
        return {"active": float(sum(extra_rows)), "prompts": float(len(hard)), "saved": float(saved)}


def _late(group: Group, extra: int) -> bool:
    """Whether the policy found a right answer among its last `extra` responses alone."""
    right = group.correct[group.judged]
    return bool(right[-extra:].any()) and not bool(right[:-extra].any())


def extra(u: float, n: int, *, n_max: int, schedule: str, std: bool) -> int:
    """dN of a question answered right with frequency `u` in `n` samples; see the module."""
    if u >= 0.5:
        return 0
    u = max(u, 0.5 / n)
    unit, peak = (2 * math.sqrt(u * (1 - u)), float(n)) if std else (2 * u * (1 - u), n / 2)
    wanted = peak * (2 * (1 - u) if schedule == "hard" else 1.0)
    return max(0, min(math.ceil((wanted - n * unit) / unit - 1e-9), n_max - n))
