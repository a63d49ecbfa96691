"""EEPO, sample-then-forget (2510.05837): half of every group is sampled from weights that were made to forget the rest.

    O1 = the first G/2 responses to each prompt of the step, from theta
    I  = [mean token entropy of the last m steps < alpha]
    c  = 1/|O1| sum_i 1/|o_i| sum_t -log(1 - min(p_{i,t}, 1 - eps))              p_{i,t} = pi_theta(o_{i,t} | ...)
    theta' = theta - eta I grad c                   plain gradient descent on the served weights; theta is not touched
    O2 = the other G/2, from theta';   then the group is O1 and O2, with one baseline, and theta is trained

After a third party's note on the paper; neither its text nor code was read. The note *ascends* on mean(-log(1 - p)),
which raises p; what suppresses O1 is descent, so that is done, and `p_before` and `p_after` are the mean probability of
O1 (weighed as in c) under theta and theta': p_after must be the smaller. The gradient on a token's logit has size p.

The note's ratio has the policy that really sampled the token in its denominator. So the old log-probs of the tokens
of theta' become the sampler's own: the objective clips pi / pi_theta', and `objective.correction` is 1 there. The
tokens of O1 keep the trainer's old log-probs and the correction, as ever. Tokens of theta' have a version of their own
(`rlvr.types.aside`). Add-ons that sample later in the step (retries) sample from theta' too.

Ours: the entropy is that of theta over the step's responses at their temperature; before there is any the gate is
closed (and the group sampled in one go); eps, which the note leaves open; O1 is without responses whose verdict is an
error. In bfloat16 theta' is rounded from the optimizer's float32 copy: the step is smaller than the spacing of the
weights. A draw that replaces a group that was dropped comes from theta' whole (`late`). Fidelity: reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample, stream_mean
from rlvr.rollout.groups import joined
from rlvr.rollout.rounds import round_problems
from rlvr.types import Group, Metrics, Trajectory, is_aside

if TYPE_CHECKING:
    from rlvr.recipe import Recipe

OLD_LOGP = "old_logp"


class Config(AddOnConfig):
    """`alpha` in nats over the last `m` steps; `eta`: rate of the unlearning step, 0 turns the method off."""

    alpha: NonNegativeFloat = 0.3
    m: PositiveInt = 3
    eta: NonNegativeFloat = 3e-3
    eps: float = Field(1e-6, gt=0.0, lt=1.0)


class Eepo(AddOn):
    """The second half of each group comes from weights that forgot the first."""

    kind = "eepo"
    Config = Config
    barrier: ClassVar[bool] = True

    def __init__(self, config: Any, *, name: str = "", seed: int = 0) -> None:
        super().__init__(config, name=name, seed=seed)
        self.needs = frozenset({"entropy", OLD_LOGP}) if config.eta else frozenset()
        self.entropies: list[float] = []  # of the last m steps

    @property
    def open(self) -> bool:
        """I of the module."""
        return bool(self.config.eta and self.entropies) and float(np.mean(self.entropies)) < self.config.alpha

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """A group without halves; methods that sample a draw in another way, or again."""
        found = [] if recipe.group > 1 else ["'eepo' needs two halves of a group: group >= 2, got 1"]
        if recipe.advantage.kind == "remax":
            found.append("'remax' samples once more than the group, 'eepo' in two halves: name another estimator")
        return [*found, *round_problems(self.kind, recipe)]

    def sampler(self, sample: Sample) -> Sample:
        """While the gate is open: half a group, the meeting of the step's draws, the other half."""

        async def in_halves(draw: Draw) -> Group:
            half = draw.group // 2
            if not self.open or not half:
                return await sample(draw)
            assert draw.ctx is not None, "EEPO samples within a run"
            group = await sample(replace(draw, group=half))
            act = partial(draw.ctx.unlearn, eta=self.config.eta, eps=self.config.eps)
            met = await draw.ctx.meet(group, act, first=draw.first)
            group, seen = met or (group, {"late": 1.0})
            second = await sample(replace(draw, group=draw.group - half, first=draw.first + half))
            said = {f"{self.name}/{key}": seen[key] for key in ("p_before", "p_after", "late") if key in seen}
            return joined(group, second.with_(counts={**second.counts, **said}))

        return in_halves

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The old log-probs of what theta' sampled become the sampler's: see the module."""
        if not self.config.eta:
            return groups
        return [g.with_(trajectories=tuple(_sampled_old(t) for t in g.trajectories)) for g in groups]

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: tokens of theta'; `p_before`, `p_after`; `late` draws; `entropy`: what the next gate looks at."""
        if not self.config.eta:
            return {}
        entropy = stream_mean(groups, "entropy")
        if entropy is not None:
            self.entropies = [*self.entropies, entropy][-self.config.m :]
        active = sum(int(is_aside(t.version).sum()) for g in groups for t in g.trajectories if t.source == "policy")
        said: Metrics = {"active": float(active)}
        for key, mean in (("p_before", True), ("p_after", True), ("late", False)):
            found = [g.counts[f"{self.name}/{key}"] for g in groups if f"{self.name}/{key}" in g.counts]
            said |= {key: float(np.mean(found) if mean else np.sum(found))} if found else {}
        return said | ({"entropy": float(np.mean(self.entropies))} if self.entropies else {})

    def state_dict(self) -> dict[str, Any]:
        """The entropies that the gate looks at."""
        return {"entropies": list(self.entropies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.entropies = [float(value) for value in state["entropies"]]


def _sampled_old(t: Trajectory) -> Trajectory:
    """The row with the behaviour log-probs of theta' as its old ones; other tokens keep theirs."""
    own = is_aside(t.version) & np.isfinite(t.logprobs) & (t.weight != 0)
    if t.source != "policy" or not own.any():
        return t
    old = np.where(own, t.logprobs, t.streams[OLD_LOGP]).astype(np.float32)
    return replace(t, streams={**t.streams, OLD_LOGP: old})
