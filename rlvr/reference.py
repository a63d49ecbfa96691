"""When the reference model follows the policy (`reference:` of a recipe), decided between two steps.

    every:    ref <- theta every `steps` steps, moments of the optimizer to 0        ProRL (2505.24864), on a timer
    plateau:  the same after `patience` evaluations in a row without a new best      ProRL, "when validation stagnates"
    average:  ref <- alpha theta + (1 - alpha) ref every `steps` steps               open-instruct's moving reference

ProRL resets by hand where validation stagnates; the rule "every N steps, or `patience` evaluations without a new best"
is ours. Best is the first dataset's pass@k with the smallest k, as for `checkpoint.best`; ties are no new best, and a
reset begins a new count but keeps the best. `average` with alpha 1 is a reset that leaves the optimizer alone.
Fidelity: reconstructed (`every`, `plateau`), exact (`average`).

An evaluation of step s runs beside step s + 1, so a decision at step s sees those of earlier steps alone: the same ones
whatever the timing, and the same ones after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlvr.engine.protocols import Policy
from rlvr.explore.base import AddOn
from rlvr.recipe import KL, Reference
from rlvr.types import Metrics

REFERENCE = "ref_"  # a stream "ref_x" is "x" of the reference model
Scores = Callable[[], Sequence[tuple[int, float]]]  # (step, score) of the evaluations there are, in order


def uses_reference(kl: KL, addons: Iterable[AddOn | type[AddOn]]) -> bool:
    """Does a run need a reference model: a KL with a coefficient, or an add-on that asks for its streams?"""
    return kl.coef > 0 or any(name.startswith(REFERENCE) for addon in addons for name in addon.needs)


class ReferenceSchedule:
    """The decision, and the little that it remembers (for `plateau`)."""

    def __init__(self, config: Reference) -> None:
        self.config = config
        self.best: float | None = None
        self.stale = 0  # evaluations in a row without a new best, since the last reset
        self.seen = -1  # step of the last evaluation that was counted

    def due(self, step: int, scores: Scores) -> bool:
        """Does the reference move now, with `step` steps done? Asked once a step, in order."""
        if self.config.update == "plateau":
            return self._plateau(step, scores())
        every = self.config.steps
        return self.config.update != "never" and every is not None and step > 0 and step % every == 0

    def _plateau(self, step: int, scores: Sequence[tuple[int, float]]) -> bool:
        for at, score in scores:
            if not self.seen < at < step:
                continue
            self.seen = at
            if self.best is None or score > self.best:
                self.best, self.stale = score, 0
            else:
                self.stale += 1
        if self.stale < self.config.patience:
            return False
        self.stale = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps (JSON)."""
        return {"best": self.best, "stale": self.stale, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; an empty one is that of a new run."""
        if state:
            self.best, self.stale, self.seen = state["best"], state["stale"], state["seen"]


async def move_reference(schedule: ReferenceSchedule, policy: Policy, *, step: int, scores: Scores) -> Metrics:
    """Move the reference if it is due; `reference/moved` is 1 on the steps that began with a move."""
    config = schedule.config
    if config.update == "never":
        return {}
    moved = schedule.due(step, scores)
    if moved and config.update == "average":
        await policy.move_reference(alpha=config.alpha, reset_optimizer=False)
    elif moved:
        await policy.move_reference(alpha=1.0, reset_optimizer=True)
    count = {"reference/stale": float(schedule.stale)} if config.update == "plateau" else {}
    return {"reference/moved": float(moved)} | count
