"""EEPO without engines: formula, meeting of draws, halves of a group, versions beside those of steps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.buffer import Buffer
from rlvr.cli.view import _version
from rlvr.compatibility import conflicts
from rlvr.errors import EngineError
from rlvr.explore.base import AddOn, Draw, Sample
from rlvr.explore.eepo import Config, Eepo
from rlvr.methods import read_methods
from rlvr.objectives.unlearning import complementary_loss
from rlvr.recipe import Recipe
from rlvr.rollout.barrier import Act, Barrier
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.replay import age
from rlvr.rollout.unlearning import unlearning_batch
from rlvr.run import RunContext
from rlvr.types import (
    I32,
    Completion,
    Group,
    Metrics,
    Request,
    Sampling,
    Task,
    TokenBatch,
    Verdict,
    aside,
    is_aside,
    step_of,
)
from rlvr.update import group_metrics
from tests.unit.rows import make_group

# ---- the formula


def test_the_loss_by_hand() -> None:
    p = torch.tensor([0.01, 0.5, 0.9, 0.99], dtype=torch.float64)
    loss = complementary_loss(p.log(), eps=1e-6)
    assert loss.tolist() == pytest.approx([0.0101, 0.6931, 2.3026, 4.6052], abs=5e-5)


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_the_gradient_on_the_tokens_own_logit_is_p(p: float) -> None:
    logits = torch.tensor([math.log(p), math.log1p(-p)], requires_grad=True)
    complementary_loss(logits.log_softmax(-1)[:1], eps=1e-6).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([p, -p], rel=1e-3)  # so descent lowers p


def test_nothing_is_infinite_and_beyond_eps_nothing_moves() -> None:
    logp = torch.tensor([0.0, -1e-9, -1e-3, -math.log(2), -50.0, -1e4, -math.inf], requires_grad=True)
    loss = complementary_loss(logp, eps=1e-6)
    loss.sum().backward()
    assert logp.grad is not None
    assert loss.isfinite().all() and logp.grad.isfinite().all()
    assert loss[0].item() == pytest.approx(-math.log(1e-6), rel=1e-3) and loss[-1] == 0
    assert logp.grad[:2].tolist() == [0, 0] and logp.grad[2] > 900 and logp.grad[-1] == 0


def test_every_response_weighs_the_same_and_every_token_of_it() -> None:
    groups = [make_group(0, scores=[1.0, 0.0]), make_group(1, scores=[1.0, 0.0], errors=[None, "timeout"])]
    foreign = replace(groups[0].trajectories[0], source="luffy")
    batch = unlearning_batch([groups[0].with_(trajectories=(*groups[0].trajectories, foreign)), groups[1]])
    weights = [float(row.weight.sum()) for row in batch.picked]
    alive = [w for w in weights if w]
    assert len(alive) == 3 and "luffy" not in {row.source for row in batch.picked}
    assert batch.scale.tolist() == pytest.approx([1 / (3 * w) if w else 0.0 for w in weights])


# ---- versions


def test_versions_beside_those_of_steps() -> None:
    versions = np.array([-1, 0, 7, aside(0), aside(7)], dtype=np.int32)
    assert step_of(versions).tolist() == [-1, 0, 7, 0, 7]
    assert is_aside(versions).tolist() == [False, False, False, True, True]
    assert aside(7) not in range(1_000_000) and np.int32(aside(7)) == aside(7)
    assert [_version(int(v)) for v in versions] == ["v-1", "v0", "v7", "v0'", "v7'"]


def test_tokens_of_changed_weights_have_the_age_of_their_step() -> None:
    group = make_group(0, scores=[1.0, 0.0], version=3)
    shifted = [replace(t, version=np.where(t.version < 0, -1, aside(3)).astype(np.int32)) for t in group.trajectories]
    moved = group.with_(trajectories=(group.trajectories[0], shifted[1]), rewards=np.zeros(2, np.float32))
    assert group_metrics([moved], version=3)["lag/max"] == 0
    assert group_metrics([moved], version=5)["lag/max"] == 2
    assert age(shifted[0], 4) == age(group.trajectories[0], 4) == 1


# ---- the meeting


def groups_of(n: int) -> list[Group]:
    return [make_group(i, scores=[1.0, 0.0]) for i in range(n)]


@dataclass
class Log:
    seen: list[list[int]] = field(default_factory=list)

    async def act(self, groups: Sequence[Group]) -> Metrics:
        await asyncio.sleep(0.01)
        self.seen.append([g.draw for g in groups])
        return {"n": float(len(groups))}


async def test_draws_meet_once_in_their_own_order() -> None:
    barrier, log, groups = Barrier(3), Log(), groups_of(4)

    async def come(i: int, after: float, step: int = 0) -> tuple[Group, Metrics] | None:
        await asyncio.sleep(after)
        return await barrier.meet(step, groups[i], log.act)

    met = await asyncio.gather(come(2, 0.0), come(0, 0.02), come(1, 0.01))
    assert log.seen == [[0, 1, 2]]
    assert [m and (m[0].draw, m[1]) for m in met] == [(i, {"n": 3.0}) for i in (2, 0, 1)]
    assert await come(3, 0.0) is None  # replaces a dropped group: the meeting has been
    again = make_group(1, scores=[0.0, 0.0])
    back = await barrier.meet(0, again, log.act)  # ran into its limit after the meeting
    assert back is not None and back[0] is groups[1] and log.seen == [[0, 1, 2]]
    await asyncio.gather(come(3, 0.0, 1), come(1, 0.0, 1), come(2, 0.0, 1))
    assert log.seen == [[0, 1, 2], [1, 2, 3]]


async def test_a_draw_that_gives_up_does_not_end_the_meeting() -> None:
    barrier, log, groups = Barrier(2), Log(), groups_of(2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await barrier.meet(0, groups[0], log.act)
    late = asyncio.create_task(barrier.meet(0, groups[1], log.act))
    await asyncio.sleep(0)
    late.cancel()  # while the meeting is held
    await asyncio.gather(late, return_exceptions=True)
    await barrier.close()
    assert log.seen == [[0, 1]]
    met = await barrier.meet(0, make_group(0, scores=[0.0, 0.0]), log.act)
    assert met is not None and met[0] is groups[0]


async def test_what_fails_in_the_meeting_fails_for_all() -> None:
    barrier, groups = Barrier(2), groups_of(2)

    async def act(groups: Sequence[Group]) -> Metrics:
        raise EngineError("a rank is gone")

    results = await asyncio.gather(*(barrier.meet(0, g, act) for g in groups), return_exceptions=True)
    assert [str(r) for r in results] == ["a rank is gone"] * 2
    await barrier.close()


@pytest.mark.parametrize("how", ["stuck", "broken"])
async def test_a_draw_that_never_comes_ends_the_run_within_the_limit(how: str) -> None:
    barrier, log = Barrier(3), Log()

    async def explore(draw: int) -> Group:
        if draw == 1 and how == "stuck":
            await asyncio.sleep(100)
        if draw == 1:
            raise EngineError("no verifier")
        met = await barrier.meet(0, make_group(draw, scores=[1.0, 0.0]), log.act)
        assert met is not None
        return met[0]

    buffer = Buffer(slots=3, group_limit=0.05, max_dropped=0)
    with pytest.raises(EngineError, match="times into its limit" if how == "stuck" else "no verifier"):
        async with asyncio.timeout(5), buffer.workers(explore):
            await buffer.take(3)
    assert log.seen == []


async def test_a_run_that_is_stopped_in_mid_step_starts_all_its_draws_again() -> None:
    async def explore(draw: int) -> Group:
        if draw:
            await asyncio.sleep(100)
        return make_group(draw, scores=[1.0, 0.0])

    states = []
    for together in (False, True):
        buffer = Buffer(slots=2, group_limit=100, max_dropped=0, together=together)
        async with buffer.workers(explore):
            await asyncio.sleep(0.02)
        states.append([group is None for group in buffer.state_dict()["active"].values()])
    assert states == [[False, True], [True, True]]


# ---- the halves of a group


@dataclass
class Engine:
    """Samples from (weights, seed) alone, like the real one."""

    weights: int = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        await asyncio.sleep(0.001 * (5 - requests[0].tokens[0] % 5))
        return [self._one(r) for r in requests]

    def _one(self, r: Request) -> Completion:
        rng = np.random.default_rng([r.sampling.seed or 0, self.weights])
        tokens = rng.integers(0, 9, 4).astype(np.int32)
        version = np.full(4, aside(2) if self.weights else 2, np.int32)
        return Completion(r.key, tokens, -rng.random(4).astype(np.float32), version, "stop")


class Judge:
    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        return [Verdict(score=float(len(r) % 2), correct=bool(len(r) % 2)) for r in responses]


class Digits:
    def encode(self, task: Task) -> I32:
        return np.array([int(task.id)], np.int32)

    def decode(self, tokens: I32) -> str:
        return "".join(map(str, tokens))


@dataclass
class Ctx:
    engine: Engine
    barrier: Barrier
    changes: bool
    unlearned: list[list[Group]] = field(default_factory=list)

    async def meet(self, group: Group, act: Act, *, first: int = 0) -> tuple[Group, Metrics] | None:
        return await self.barrier.meet(2, group, act, first=first)

    async def unlearn(self, groups: Sequence[Group], *, eta: float, eps: float) -> Metrics:
        self.unlearned.append(list(groups))
        self.engine.weights = int(self.changes)
        return {"p_before": 0.5, "p_after": 0.25, "time/push": 1.0}


def eepo(entropies: Sequence[float] = (0.1,), **options: Any) -> Eepo:
    addon = Eepo(Config(**options), name="eepo")
    addon.entropies = list(entropies)
    return addon


async def groups_by(addon: AddOn | None, *, group: int, changes: bool = True) -> tuple[list[Group], Ctx]:
    engine = Engine()
    ctx = Ctx(engine, Barrier(3), changes)
    sample: Sample = flat_groups(engine, Judge(), Digits(), seed=5)
    sample = addon.sampler(sample) if addon else sample
    draws = [
        Draw(Task(str(i), "?", "!"), i, step=2, group=group, sampling=Sampling(), ctx=ctx)  # type: ignore[arg-type]
        for i in range(3)
    ]
    return list(await asyncio.gather(*map(sample, draws))), ctx


def same_rows(a: Group, b: Group, rows: slice = slice(None)) -> bool:
    pairs = zip(a.trajectories[rows], b.trajectories[rows], strict=True)
    names = ("tokens", "logprobs", "version", "weight", "origin")
    return all(getattr(x, n).tobytes() == getattr(y, n).tobytes() for x, y in pairs for n in names)


@pytest.mark.parametrize("addon", [eepo(eta=0.0), eepo([]), eepo([0.3]), eepo([0.1, 0.6])])
async def test_off_or_with_the_gate_closed_it_is_plain_sampling(addon: Eepo) -> None:
    plain, _ = await groups_by(None, group=4)
    groups, ctx = await groups_by(addon, group=4)
    assert all(same_rows(a, b) and a.counts == b.counts for a, b in zip(plain, groups, strict=True))
    assert ctx.unlearned == []


@pytest.mark.parametrize("size", [2, 4, 5])
async def test_halves_that_nothing_came_between_are_the_whole(size: int) -> None:
    plain, _ = await groups_by(None, group=size)
    groups, ctx = await groups_by(eepo(), group=size, changes=False)
    assert all(same_rows(a, b) for a, b in zip(plain, groups, strict=True)) and len(ctx.unlearned) == 1


async def test_the_second_half_comes_from_the_changed_weights() -> None:
    plain, _ = await groups_by(None, group=5)
    groups, ctx = await groups_by(eepo(), group=5)
    assert [[g.draw for g in met] for met in ctx.unlearned] == [[0, 1, 2]]
    assert [len(g) for g in ctx.unlearned[0]] == [2, 2, 2]
    for a, b in zip(plain, groups, strict=True):
        assert same_rows(a, b, slice(2)) and not same_rows(a, b, slice(2, None))
        stages = [is_aside(t.version[t.weight != 0]) for t in b.trajectories]
        assert not any(s.any() for s in stages[:2]) and all(s.all() for s in stages[2:])
    addon = eepo()
    with_streams = [g.with_(trajectories=tuple(streamed(t) for t in g.trajectories)) for g in groups]
    said = addon.observe(with_streams, {})
    assert said["active"] == 3 * 3 * 4 and (said["p_before"], said["p_after"]) == (0.5, 0.25)
    assert "late" not in said and said["entropy"] == pytest.approx((0.1 + 0.7) / 2)


def streamed(t: Any) -> Any:
    mask = t.weight != 0
    full = {"entropy": np.where(mask, 0.7, 0.0), "old_logp": np.where(mask, -1.5, 0.0)}
    return replace(t, streams={name: value.astype(np.float32) for name, value in full.items()})


async def test_the_denominator_is_the_policy_that_sampled_the_token() -> None:
    groups, _ = await groups_by(eepo(), group=4)
    rows = [g.with_(trajectories=tuple(streamed(t) for t in g.trajectories)) for g in groups]
    for group in eepo().advantage(rows):
        for i, t in enumerate(group.trajectories):
            own = t.weight != 0
            want = t.logprobs[own] if i >= 2 else np.full(own.sum(), -1.5, np.float32)
            assert t.streams["old_logp"][own].tolist() == want.tolist() and t.streams["old_logp"][0] == 0
    assert eepo(eta=0.0).advantage(rows) is rows


async def test_the_gate_looks_at_the_last_m_steps() -> None:
    addon = eepo([], alpha=0.5, m=2)
    groups, _ = await groups_by(None, group=2)
    seen = []
    for value in (0.9, 0.3, 0.2, 0.9):
        rows = [
            g.with_(trajectories=tuple(replace(streamed(t), streams=entropy(t, value)) for t in g.trajectories))
            for g in groups
        ]
        addon.observe(rows, {})
        seen.append((round(float(np.mean(addon.entropies)), 6), addon.open))
    assert seen == [(0.9, False), (0.6, False), (0.25, True), (0.55, False)]
    fresh = eepo([], alpha=0.5, m=2)
    fresh.load_state_dict(addon.state_dict())
    assert fresh.entropies == addon.entropies and len(fresh.entropies) == 2


def entropy(t: Any, value: float) -> dict[str, np.ndarray]:
    return {"entropy": np.where(t.weight != 0, value, 0).astype(np.float32)}


# ---- what a recipe may hold


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "model": {"path": "a/b"}, "data": {"train": [{"name": "gsm8k"}]}, "group": 4, "explore": [{"kind": "eepo"}],
    }  # fmt: skip
    return Recipe.model_validate(base | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"group": 1}, "group >= 2"),
        ({"max_lag": 1}, "max_lag: 0"),
        ({"keep": "informative"}, "keep: all"),
        ({"explore": [{"kind": "eepo"}, {"kind": "dars"}]}, "same seeds"),
        ({"explore": [{"kind": "treerl"}, {"kind": "eepo"}]}, "'treerl'"),
        ({"explore": [{"kind": "eepo"}, {"kind": "eepo"}]}, "twice"),
        ({"advantage": {"kind": "remax"}}, "'remax'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str | None, tmp_path: Path) -> None:
    made = recipe(**changes)
    read, _ = read_methods(made, project=tmp_path)
    errors = [text for level, _, text in conflicts(made, read) if level == "error"]
    assert (errors == []) if says is None else any(says in text for text in errors)


# ---- the run


@dataclass
class Sync:
    order: list[Any]

    async def push_unlearned(self, batch: TokenBatch, *, eta: float, eps: float, version: int) -> Metrics:
        self.order.append((len(batch), eta, eps, version))
        return {"p_before": 0.1}


async def test_an_evaluation_that_still_runs_is_waited_for() -> None:
    order: list[Any] = []

    async def settled() -> None:
        await asyncio.sleep(0.01)
        order.append("evaluated")

    nothing: Any = None
    sync: Any = Sync(order)
    ctx = RunContext(7, nothing, nothing, nothing, (), Sampling(), sync=sync, barrier=Barrier(2), settled=settled)
    assert await ctx.at(5).unlearn(groups_of(2), eta=0.5, eps=1e-6) == {"p_before": 0.1}
    assert order == ["evaluated", (4, 0.5, 1e-6, aside(5))]
    assert ctx.at(5).barrier is ctx.barrier
