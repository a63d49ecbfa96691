"""What happens around the loop: records, evaluations beside the training, checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlvr import checkpoint
from rlvr.engine.protocols import Sampler, Verifiers
from rlvr.evaluate.run import evaluate
from rlvr.evaluate.samples import fresh
from rlvr.parts import Loop
from rlvr.recipe import Recipe
from rlvr.rollout.groups import Encoder
from rlvr.rollout.meter import DECODED
from rlvr.track.journal import read
from rlvr.track.run_dir import RunDir
from rlvr.track.tracker import Tracker
from rlvr.types import Group, Metrics, Sampling, Task


@dataclass
class RunObserver:
    """Implements `rlvr.loop.Observer` over a run folder."""

    recipe: Recipe
    folder: RunDir
    tracker: Tracker
    sampler: Sampler
    verifiers: Verifiers
    encoder: Encoder
    eval_sets: Mapping[str, Sequence[Task]]
    digests: Mapping[str, str]  # of the catalogue files in use
    last_saved: int = -1
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # the run is told to end
    blocked: asyncio.Event = field(default_factory=asyncio.Event)  # a new sampler waits for the next push
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def record(self, step: int, groups: Sequence[Group], metrics: Metrics) -> None:
        """Rollouts first (dropped groups too, in draw order), then the step's line of metrics."""
        for group in groups:
            self.tracker.group(group, step=step)
        self.tracker.step({"step": step} | metrics | drop_metrics(groups) | speed_metrics(groups, metrics))

    def evaluate(self, step: int) -> Awaitable[None] | None:
        """At the start, every N steps and at the end; a dataset already evaluated at this step is skipped."""
        every = self.recipe.evaluate.every
        due = every > 0 and (step % every == 0 or step >= self.recipe.steps)
        missing = [name for name in self.eval_sets if (step, name) not in self.tracker.evaluated]
        if not due or not missing:
            return None
        task = asyncio.create_task(self._evaluate(step, missing), name=f"evaluate-{step}")
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return self._settled(task, step)

    async def _settled(self, task: asyncio.Task[None], step: int) -> None:
        """Wait for an evaluation, but not when the run is to end, or when it cannot end before the next push."""
        # A reference that moves on a plateau needs the score: a run that was stopped must decide as one that was not.
        events = (self.blocked,) if self.recipe.reference.update == "plateau" else (self.blocked, self.stop)
        others = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        if task.done():
            task.result()
        elif self.stop.is_set():
            task.cancel()
            self.tracker.display.note(f"warning: the evaluation of step {step} was not finished")
        else:
            self.tracker.display.note(
                f"warning: the evaluation of step {step} ends on later weights: a sampler died under it"
            )

    async def _evaluate(self, step: int, names: Sequence[str]) -> None:
        e, s = self.recipe.evaluate, self.recipe.sampling
        sampling = Sampling(
            temperature=e.temperature, top_p=e.top_p, max_tokens=e.max_tokens or s.max_tokens, stop=s.stop
        )
        for name in names:
            seed = self.recipe.seed
            result = await evaluate(
                self.eval_sets[name],
                dataset=name,
                draw=fresh(self.sampler, self.encoder, sampling=sampling, dataset=name, seed=seed),
                verifiers=self.verifiers,
                n=e.n,
                ks=e.k,
                seed=seed,
                max_tokens=sampling.max_tokens,
                limit=self.recipe.limits.group,
            )
            self.tracker.evaluation(result.record(step))
        self._prune()

    async def checkpoint(self, loop: Loop, metrics: Metrics) -> Path | None:
        """Write one every N steps and after the last one; it counts when `commit` is called."""
        every = self.recipe.checkpoint.every
        due = loop.step >= self.recipe.steps or (every > 0 and loop.step % every == 0)
        return await self._write(loop, metrics) if due else None

    async def settled(self) -> None:
        """Wait for the evaluation that runs beside the sampling: its answers are to come from one step's weights."""
        if self.running:
            await asyncio.wait(self.running)

    def commit(self, partial: Path | None) -> None:
        """After the step's lines are in the journals: a checkpoint never stands without them."""
        if partial is not None:
            checkpoint.commit(partial)
            self._prune()

    async def save(self, loop: Loop) -> None:
        """Save the state between two steps now, unless it is saved already."""
        if self.last_saved != loop.step:
            self.commit(await self._write(loop, {}))

    async def _write(self, loop: Loop, metrics: Metrics) -> Path:
        state: dict[str, Any] = {
            "update": loop.update,
            "version": loop.step,
            "reference": loop.reference.state_dict(),
            "addons": {addon.name: addon.state_dict() for addon in loop.addons},
            "metrics": {k: v for k, v in metrics.items() if not k.startswith("time/")},
            "digests": dict(self.digests),
        }
        self.last_saved = loop.step
        return await checkpoint.write(
            self.folder.checkpoints,
            step=loop.step,
            state=state,
            buffer=loop.buffer.state_dict(),
            policy=loop.policy.save,
        )

    def _prune(self) -> None:
        keep = self.recipe.checkpoint
        checkpoint.prune(self.folder.checkpoints, keep=keep.keep, best=self.best() if keep.best else None)

    def scores(self) -> list[tuple[int, float]]:
        """(step, score) of every evaluation of the first dataset so far; the score is its pass@k, smallest k."""
        name, key = next(iter(self.eval_sets), None), f"pass@{min(self.recipe.evaluate.k)}"
        records = read(self.folder.evals)
        return [(record["step"], record[key]["value"]) for record in records if record["dataset"] == name]

    def best(self) -> int | None:
        """The step with a checkpoint whose evaluation (first dataset, first k) is highest; the earlier of equals."""
        there = set(checkpoint.steps(self.folder.checkpoints))
        scores = {step: score for step, score in self.scores() if step in there}
        return max(scores, key=lambda step: (scores[step], -step), default=None)


def drop_metrics(groups: Sequence[Group]) -> Metrics:
    """How many groups were dropped, and why; pass rate, errors and tokens of all that was sampled, before any drop.

    The pass rate is of the policy's own rows (`Group.own`), NaN without any verdict.
    """
    valid = np.concatenate([g.valid for g in groups])
    judged = valid & np.concatenate([g.own for g in groups])
    correct = np.concatenate([g.correct for g in groups])
    out: Metrics = {
        "groups/dropped": float(sum(g.dropped is not None for g in groups)),
        "sampled/pass_rate": float(correct[judged].mean()) if judged.any() else float("nan"),
        "sampled/errors": float((~valid).sum()),
        "sampled/tokens": sum(g.counts.get(DECODED, 0.0) for g in groups),
    }
    for group in groups:
        if group.dropped is not None:
            key = f"groups/dropped_{group.dropped.replace(' ', '_')}"
            out[key] = out.get(key, 0.0) + 1.0
    return out


def speed_metrics(groups: Sequence[Group], metrics: Metrics) -> Metrics:
    """Throughput of the step over all groups that were sampled, dropped ones too."""
    rows = [t for g in groups for t in g.trajectories]
    seconds = metrics["time/step"]
    return {
        "time/verify": sum(t.verdict.elapsed for t in rows if t.verdict is not None),
        "time/completions_per_s": len(rows) / seconds,
        "time/tokens_per_s": sum(t.response_len for t in rows) / seconds,
    }
