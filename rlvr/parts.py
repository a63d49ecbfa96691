"""What the loop is made of: the state of a run between two steps, and whom it tells what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlvr.buffer import Buffer
from rlvr.engine.protocols import Policy, WeightSync
from rlvr.explore.base import AddOn, Context, Sample
from rlvr.recipe import Recipe
from rlvr.reference import ReferenceSchedule
from rlvr.surrogates.base import Surrogate
from rlvr.types import Group, Metrics, Task


class Observer(Protocol):
    """What the loop tells the outside world; see `rlvr.run`."""

    def record(self, step: int, groups: Sequence[Group], metrics: Metrics) -> None:
        """One finished step: every group of it (dropped ones too, in draw order) and its metrics."""
        ...

    async def checkpoint(self, loop: Loop, metrics: Metrics) -> Path | None:
        """Write one if it is due; it counts from `commit` on."""
        ...

    def commit(self, partial: Path | None) -> None:
        """The step is recorded: its checkpoint may stand."""
        ...

    def scores(self) -> Sequence[tuple[int, float]]:
        """(step, score) of the evaluations that have ended, in order: the first dataset's pass@k, smallest k."""
        ...

    def evaluate(self, step: int) -> Awaitable[None] | None:
        """Start an evaluation of the weights of `step` if one is due."""
        ...


@dataclass
class Loop:
    """The state of a run between two steps, and the parts it works with."""

    recipe: Recipe
    tasks: Callable[[int], Task]  # x ~ D: a pure function of the draw
    sample: Sample  # already wrapped by the add-ons
    policy: Policy
    sync: WeightSync
    buffer: Buffer
    context: Context
    observer: Observer
    surrogate: Surrogate
    reference: ReferenceSchedule
    addons: Sequence[AddOn] = ()  # the estimator and the surrogate among them, in the order of application
    step: int = 0  # steps done = weight version served
    update: int = 0  # optimizer updates done
    stop: asyncio.Event = field(default_factory=asyncio.Event)
