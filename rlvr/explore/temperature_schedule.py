"""Sampling temperature as a function of the step: hot at first, for variety, then cooler (or the other way round).

    T(step) = start + (end - start) * min(step / steps, 1)                             scalar, for every token

`step` is the step that collects the draw, so a resumed run goes on where it was, without state. The temperature
is recorded in each trajectory, and the trainer divides its logits by the same number: ratios stay exact.
Common practice rather than one paper's method. Fidelity: reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from rlvr.explore.base import AddOn, AddOnConfig, Draw, Sample
from rlvr.types import Group, Metrics, Origin


class Config(AddOnConfig):
    """From `start` to `end` within `steps` steps. A constant temperature belongs in `sampling`."""

    start: PositiveFloat = 1.2
    end: PositiveFloat = 1.0
    steps: PositiveInt = 100


class TemperatureSchedule(AddOn):
    """Replaces the temperature of every draw."""

    kind = "temperature_schedule"
    Config = Config

    def sampler(self, sample: Sample) -> Sample:
        """Sample each draw at its step's temperature."""

        async def scheduled(draw: Draw) -> Group:
            temperature = temperature_at(
                draw.step, start=self.config.start, end=self.config.end, steps=self.config.steps
            )
            return await sample(replace(draw, sampling=replace(draw.sampling, temperature=temperature)))

        return scheduled

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        """`active`: rows sampled on the way, at another temperature than `end`; `temperature`: mean over tokens."""
        rows = [t.temperature[t.origin == Origin.SAMPLED] for group in groups for t in group.trajectories]
        low, high = sorted((np.float32(self.config.start), np.float32(self.config.end)))
        moving = [bool(np.any((r != np.float32(self.config.end)) & (r >= low) & (r <= high))) for r in rows]
        tokens = np.concatenate([np.zeros(0, dtype=np.float32), *rows])
        return {"active": float(sum(moving)), "temperature": float(tokens.mean()) if len(tokens) else 0.0}


def temperature_at(step: int, *, start: float, end: float, steps: int) -> float:
    """The schedule's temperature of one step."""
    return end if step >= steps else start + (end - start) * step / steps
