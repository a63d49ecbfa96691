"""ReMax (2310.10505): the baseline of a prompt is the reward of its greedy response.

    A_i = R_i - R_greedy                                                                [G] -> [G]

One more response a prompt, sampled at temperature 0. It is recorded in the group as its last row (`source: greedy`) and
never trained on; its verdict counts for `keep: informative`, since a group whose samples all differ from the greedy
response is informative here. A sample with the greedy response's reward gets 0; a group needs no second sample.
Where the greedy verdict is an error there is no baseline: the group's rows are masked and counted (`no_baseline`).
Differs from the paper: it uses the plain REINFORCE loss; here the recipe's objective applies.
Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlvr.advantages.base import F64, Estimator, shaped, spread
from rlvr.advantages.rows import masked
from rlvr.explore.base import AddOnConfig, Draw, Sample
from rlvr.types import Group, Metrics, Origin, Trajectory

SOURCE = "greedy"  # of the trajectory that is the baseline


def remax(rewards: F64, greedy: float) -> F64:
    """Rewards [G] less the greedy one; 0 on error rows (NaN)."""
    return np.where(np.isnan(rewards), 0.0, rewards - greedy)


class Config(AddOnConfig):
    """Nothing to set."""


class ReMax(Estimator):
    """The greedy response as baseline."""

    kind = "remax"
    Config = Config
    fewest = 1

    def sampler(self, sample: Sample) -> Sample:
        """One more response of every draw, greedy, as the last row of its group."""

        async def with_greedy(draw: Draw) -> Group:
            group = await sample(draw)
            greedy = replace(draw.sampling, temperature=0.0, top_p=1.0, top_k=-1)
            best = await sample(replace(draw, group=1, sampling=greedy))
            return group.with_(trajectories=(*group.trajectories, untrained(best.trajectories[0])))

        return with_greedy

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The same number on every trained token of a row; a group without a baseline is masked."""
        return [masked(g) if np.isnan(b := baseline(g)) else spread(g, remax(shaped(g), b)) for g in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`greedy_reward`: mean of the baselines; `no_baseline`: groups masked since theirs is missing or an error."""
        found = np.array([baseline(g) for g in groups])
        known = found[~np.isnan(found)]
        mean = {"greedy_reward": float(known.mean())} if len(known) else {}
        return super().observe(groups, metrics) | mean | {"no_baseline": float(np.isnan(found).sum())}


def baseline(group: Group) -> float:
    """The reward of the greedy row; NaN where there is none or its verdict is an error."""
    places = [i for i, t in enumerate(group.trajectories) if t.source == SOURCE]
    return float(shaped(group)[places[-1]]) if places else np.nan


def untrained(t: Trajectory) -> Trajectory:
    """The row with weight 0 and unknown log-probs: temperature 0 is no distribution to compare with."""
    unknown = np.where(t.origin == Origin.SAMPLED, np.nan, t.logprobs).astype(np.float32)
    flat = np.ones_like(t.temperature)
    return replace(t, weight=np.zeros_like(t.weight), logprobs=unknown, temperature=flat, source=SOURCE)
