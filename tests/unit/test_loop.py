"""The loop against a toy policy and a toy sampler: order, lag, versions, resume of its own state."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvr.buffer import Buffer
from rlvr.engine.protocols import Which
from rlvr.explore.base import AddOn, AddOnConfig, Draw, Update, stream_mean
from rlvr.explore.base import Knobs as AddOnKnobs
from rlvr.loop import explore, train
from rlvr.parts import Loop
from rlvr.recipe import Recipe
from rlvr.reference import ReferenceSchedule
from rlvr.surrogates.clip import Clip
from rlvr.types import Group, Metrics, Plan, Streams, Task, TokenBatch
from tests.unit.rows import make_group


@dataclass
class ToyPolicy:
    """Counts what it is asked for."""

    updates: list[tuple[int, int, bool, float]] = field(default_factory=list)  # update, rows, first, sum of scale
    plans: list[Plan] = field(default_factory=list)
    measured: list[tuple[frozenset[str], Which, int]] = field(default_factory=list)

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        self.measured.append((frozenset(needs), model, len(batch)))
        return [{n: np.full_like(r.weight, -0.7) for n in needs} for r in batch.picked]

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        tokens = sum(float(r.weight.sum()) * s for r, s in zip(batch.picked, batch.scale, strict=True))
        self.updates.append((plan.update, len(batch), plan.first, tokens))
        self.plans.append(plan)
        return {"train/loss": 0.0, "train/gap_max": float(plan.update), "train/tokens": 1.0}


@dataclass
class ToyContext:
    step: int = -1

    def at(self, step: int) -> ToyContext:
        return ToyContext(step)

    def decoded(self, draw: int) -> int:
        return 10 + draw


@dataclass
class ToySync:
    version: int = 0

    async def push(self, version: int) -> Metrics:
        await asyncio.sleep(0.001)
        self.version = version
        return {}


@dataclass
class Recorder:
    lines: list[tuple[int, list[int], Metrics]] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    evaluated: list[tuple[int, int]] = field(default_factory=list)
    sync: ToySync = field(default_factory=ToySync)

    def record(self, step: int, groups: Sequence[Group], metrics: Metrics) -> None:
        timeless = {k: v for k, v in metrics.items() if not k.startswith("time/")}
        self.lines.append((step, [g.draw for g in groups], timeless))

    async def checkpoint(self, loop: Loop, metrics: Metrics) -> Path | None:
        self.written.append(loop.step)
        return Path(str(loop.step))

    def commit(self, partial: Path | None) -> None:
        assert partial is not None and self.lines[-1][0] == int(str(partial))  # never before its lines
        self.saved.append(int(str(partial)))

    def scores(self) -> list[tuple[int, float]]:
        return []

    def evaluate(self, step: int) -> Awaitable[None] | None:
        async def run() -> None:
            await asyncio.sleep(0.005)
            self.evaluated.append((step, self.sync.version))

        return asyncio.ensure_future(run()) if step % 2 == 0 else None


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "steps": 5,
        "prompts": 4,
        "group": 2,
        "model": {"path": "x"},
        "data": {"train": [{"name": "t"}]},
    }
    return Recipe.model_validate(base | changes)


def make_loop(r: Recipe, *, seed: int = 0, addons: Sequence[AddOn] = ()) -> tuple[Loop, ToyPolicy, Recorder]:
    rng, sync, policy = random.Random(seed), ToySync(), ToyPolicy()

    async def sample(draw: Draw) -> Group:
        version = sync.version
        await asyncio.sleep(rng.random() / 400)
        score = float(draw.index % 3 != 0)
        return make_group(draw.index, scores=[score, 0.0], version=version)

    for addon in reversed(addons):
        sample = addon.sampler(sample)
    recorder = Recorder(sync=sync)
    buffer = Buffer(slots=(r.max_lag + 1) * r.prompts, group_limit=5, max_dropped=100)
    loop = Loop(
        recipe=r,
        tasks=lambda draw: Task(id=f"t{draw}", prompt="?", answer="1"),
        sample=sample,
        policy=policy,
        sync=sync,
        buffer=buffer,
        context=ToyContext(),  # type: ignore[arg-type]
        observer=recorder,
        surrogate=Clip(Clip.Config()),
        addons=addons,
        reference=ReferenceSchedule(r.reference),
    )
    return loop, policy, recorder


async def test_a_synchronous_run_does_not_depend_on_timing() -> None:
    lines = []
    for seed in range(3):
        loop, _, recorder = make_loop(recipe(keep="informative"), seed=seed)
        await train(loop)
        lines.append(recorder.lines)
    assert lines[0] == lines[1] == lines[2]
    assert [step for step, _, _ in lines[0]] == [1, 2, 3, 4, 5]
    assert all(m["lag/max"] == 0 for _, _, m in lines[0])
    drawn = [d for _, draws, _ in lines[0] for d in draws]
    assert drawn == list(range(len(drawn)))  # every draw once, dropped ones in their place
    assert len(drawn) == 5 * 4 + sum(d % 3 == 0 for d in drawn)


async def test_asynchronous_lag_is_bounded_and_reached() -> None:
    loop, _, recorder = make_loop(recipe(max_lag=2, steps=8))
    await train(loop)
    lags = [m["lag/max"] for _, _, m in recorder.lines]
    assert max(lags) == 2


async def test_a_group_says_what_it_cost() -> None:
    loop, _, _ = make_loop(recipe())
    assert (await explore(loop, 3)).counts["decoded"] == 13


async def test_updates_are_split_by_groups_with_global_scales() -> None:
    loop, policy, recorder = make_loop(recipe(minibatches=2, epochs=2, steps=1))
    await train(loop)
    assert [(u, n, first) for u, n, first, _ in policy.updates] == [
        (0, 4, True),
        (1, 4, False),
        (2, 4, False),
        (3, 4, False),
    ]
    assert all(abs(total - 1.0) < 1e-6 for *_, total in policy.updates)  # token mean: scales sum to one over tokens
    assert policy.measured == [(frozenset({"logp"}), "policy", 8)]  # old log-probs, once
    assert loop.update == 4
    assert recorder.lines[0][2]["train/gap_max"] == 3.0 and recorder.lines[0][2]["train/tokens"] == 4.0


async def test_one_update_needs_no_forward_of_its_own() -> None:
    loop, policy, _ = make_loop(recipe(steps=2))
    await train(loop)
    assert policy.measured == []
    with_ref, policy, _ = make_loop(recipe(steps=1, kl={"coef": 0.1}))
    await train(with_ref)
    assert policy.measured == [(frozenset({"logp"}), "reference", 8)]


async def test_evaluation_ends_before_its_weights_are_replaced() -> None:
    loop, _, recorder = make_loop(recipe(steps=4))
    await train(loop)
    assert recorder.evaluated == [(0, 0), (2, 2), (4, 4)]


class Probe(AddOn):
    kind = "probe"
    Config = AddOnConfig
    needs = frozenset({"entropy"})
    measures = frozenset({"logp"})

    def __init__(self) -> None:
        super().__init__(AddOnConfig())
        self.seen: list[str] = []

    def tasks(self, task: Task, draw: int) -> Task:
        self.seen.append("tasks")
        return task

    async def guide(self, group: Group, ctx: Any) -> Group:
        self.seen.append("guide")
        assert ctx.step == 0
        return group

    def reward(self, groups: Sequence[Group]) -> Sequence[Group]:
        self.seen.append("reward")
        assert all("entropy" in t.streams for g in groups for t in g.trajectories)
        return groups

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        self.seen.append("advantage")
        return groups

    def knobs(self, update: Update) -> AddOnKnobs:
        self.seen.append(f"knobs{update.update}")
        assert all("logp" in s for s in update.stats) and len(update.stats) == len(update.rows)
        return AddOnKnobs(scalars={"x": 1.0}, marks=[r.weight for r in update.rows], metrics={"active": 2.0})

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        self.seen.append("observe")
        return {"count": float(len(groups))}


async def test_hooks_come_in_order_and_their_metrics_are_named() -> None:
    probe = Probe()
    loop, policy, recorder = make_loop(recipe(steps=1, prompts=2, minibatches=2), addons=[probe])
    await train(loop)
    first = probe.seen.index("reward")
    assert probe.seen[first : first + 5] == ["reward", "advantage", "knobs0", "knobs1", "observe"]
    metrics = recorder.lines[0][2]
    assert metrics["probe/active"] == 4.0 and metrics["probe/count"] == 2.0
    # the first update reuses what was measured for credit, the second measures the current weights
    assert [(set(n), rows) for n, _, rows in policy.measured] == [({"logp", "entropy"}, 4), ({"logp"}, 2)]
    assert policy.plans[0].knobs == {"probe": {"x": 1.0}} and len(policy.plans[1].marks["probe"]) == 2


class Weights(AddOn):
    """Notes what credit, the update and the end of a step see of each row."""

    kind = "weights"
    Config = AddOnConfig
    needs = frozenset({"entropy"})

    def __init__(self) -> None:
        super().__init__(AddOnConfig())
        self.seen: dict[str, list[float]] = {}

    def advantage(self, groups: Sequence[Group]) -> Sequence[Group]:
        self.seen["rewards"] = [float(r) for g in groups for r in (g.rewards if g.rewards is not None else ())]
        self.seen["credit"] = [float(t.weight.sum()) for g in groups for t in g.trajectories]
        return groups

    def knobs(self, update: Update) -> AddOnKnobs:
        self.seen["update"] = [float(r.weight.sum()) for r in update.rows]
        self.seen["scale"] = update.scale.tolist()
        return AddOnKnobs()

    def observe(self, groups: Sequence[Group], metrics: Metrics) -> Metrics:
        self.seen["entropy"] = [stream_mean(groups, "entropy") or 0.0]
        return {}


@pytest.mark.parametrize(("kind", "second"), [("none", 3.0), ("mask", 0.0)])
async def test_a_truncated_row_keeps_its_reward_and_leaves_the_loss_and_the_means(kind: str, second: float) -> None:
    probe = Weights()
    loop, _, _ = make_loop(recipe(steps=1, prompts=1, overlong={"kind": kind}), addons=[probe])

    async def sample(draw: Draw) -> Group:
        return make_group(draw.index, scores=[0.0, 1.0], finishes=["stop", "length"])

    async def measure(batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        return [{n: np.full_like(r.weight, 1.0 + 2.0 * i) for n in needs} for i, r in enumerate(batch.picked)]

    loop.sample, loop.policy.measure = sample, measure  # type: ignore[method-assign]
    await train(loop)
    assert probe.seen["rewards"] == [0.0, 1.0]
    assert probe.seen["credit"] == probe.seen["update"] == [3.0, second]
    assert probe.seen["scale"] == pytest.approx([1 / 3, 0.0] if kind == "mask" else [1 / 6, 1 / 6])
    assert probe.seen["entropy"] == [1.0 if kind == "mask" else 2.0]


async def test_a_stop_keeps_what_was_finished() -> None:
    loop, _, recorder = make_loop(recipe(steps=50))

    async def stop() -> None:
        while loop.step < 3:
            await asyncio.sleep(0.001)
        loop.stop.set()

    await asyncio.wait_for(asyncio.gather(train(loop), stop()), 10)
    assert 3 <= loop.step < 50 and len(recorder.lines) == loop.step


async def test_resumed_steps_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, _, recorder = make_loop(recipe(steps=6, keep="informative", minibatches=2))
    await train(whole)
    first, _, before = make_loop(recipe(steps=3, keep="informative", minibatches=2), seed=1)
    await train(first)
    second, _, after = make_loop(recipe(steps=6, keep="informative", minibatches=2), seed=2)
    second.step, second.update, second.sync.version = 3, first.update, 3  # type: ignore[attr-defined]
    second.buffer.load_state_dict(first.buffer.state_dict())
    await train(second)
    assert before.lines + after.lines == recorder.lines


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
async def test_reductions_reach_the_policy(reduction: str) -> None:
    loop, policy, _ = make_loop(recipe(steps=1, objective={"reduction": reduction, "constant": 6}))
    await train(loop)
    # 8 rows of 3 tokens: token mean and sequence mean sum to 1, the constant 6 gives 8*3/(8*6)
    assert abs(policy.updates[0][3] - (0.5 if reduction == "constant" else 1.0)) < 1e-6
