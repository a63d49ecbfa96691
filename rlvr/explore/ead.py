"""EAD, exploratory annealed decoding (2510.05251): hot at the start of a response, cold at its end.

    tau_t = max(1 + tau_max - exp(t / d), tau_min)          t-th response token, from 0; 1 for t < c
    d     = min(d0 + growth * step, d_max)                  tokens: the longer the training, the slower it cools

A logits processor divides the logits of token t by T tau_t (T: `sampling.temperature`), so behaviour log-probs are
those of what was sampled; the trainer's row carries the same temperatures from the same function
(`Sampling.temperatures`), and its log-probs, ratios and entropies are of the annealed policy. A branch of a tree goes
on where its prefix ended. Retries and demonstrations of other add-ons have the first token's temperature throughout.

The released code trains at temperature 1 and weighs the difference away (or corrects for it with another d): here
there is none. d is the paper's (growth 5, d_max 40000); the code multiplies it by 20 (growth 100, d_max 800000), so
that both agree at step 0 alone. tau_min 0.1 makes long endings nearly greedy. Fidelity: exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample
from rlvr.types import Annealing, Group, Metrics, Origin

if TYPE_CHECKING:
    from rlvr.recipe import Recipe


class Config(AddOnConfig):
    """Lengths in tokens. tau_max = tau_min = 1 is plain sampling."""

    tau_max: PositiveFloat = 1.2
    tau_min: PositiveFloat = 0.1
    d0: PositiveFloat = 500.0
    growth: NonNegativeFloat = 5.0
    d_max: PositiveFloat = 40000.0
    c: NonNegativeInt = 10


class EAD(AddOn):
    """Anneals the temperature of every response."""

    kind = "ead"
    Config = Config

    def problems(self, recipe: Recipe) -> Sequence[str]:
        """Speculative decoding, which leaves no room for the logits processor; another annealing."""
        found = []
        if recipe.vllm.get("speculative_config"):
            found.append("'ead' changes the logits, which vLLM cannot with vllm.speculative_config: take one away")
        if sum(spec.kind == self.kind for spec in recipe.explore) > 1:
            found.append("'ead' stands twice in explore: one annealing a recipe")
        return found

    def sampler(self, sample: Sample) -> Sample:
        """Sample each draw with its step's annealing."""
        config = self.config
        if config.tau_max == config.tau_min == 1.0:
            return sample

        async def annealed(draw: Draw) -> Group:
            made = annealing(draw.step, config)
            return await sample(replace(draw, sampling=replace(draw.sampling, annealing=made)))

        return annealed

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows whose temperature moves; `temperature`: mean over sampled tokens; `coldest` of them."""
        rows = [t.temperature[t.origin == Origin.SAMPLED] for group in groups for t in group.trajectories]
        tokens = np.concatenate([np.zeros(0, dtype=np.float32), *rows])
        out = {"active": float(sum(bool(len(r) and r.min() != r.max()) for r in rows))}
        return out | ({"temperature": float(tokens.mean()), "coldest": float(tokens.min())} if len(tokens) else {})


def annealing(step: int, config: Config) -> Annealing:
    """The temperatures of the responses of one step."""
    scale = min(config.d0 + config.growth * step, config.d_max)
    return Annealing(high=config.tau_max, low=config.tau_min, scale=scale, first=config.c)
