"""The replay store and the methods on it: numbers of the papers, ages, refusals, resuming."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.advantages.grpo import Config as GrpoConfig
from rlvr.advantages.grpo import Grpo
from rlvr.batching import collate
from rlvr.explore.base import AddOn, Draw, Update
from rlvr.explore.exgrpo import Config, Exgrpo, bucket, bucket_weights
from rlvr.explore.repo import Config as RePOConfig
from rlvr.explore.repo import RePO, chosen
from rlvr.loop import train
from rlvr.objectives.ratio import shaped_ratio
from rlvr.objectives.view import TokenView
from rlvr.observer import drop_metrics
from rlvr.parts import Loop
from rlvr.rollout.replay import Entry, ReplayStore, age, replayed, unstorable, unusable, without
from rlvr.types import F32, Group, Origin, Sampling, Task, Trajectory, Verdict
from rlvr.update import Streamed, group_metrics
from tests.unit.conformance import saved
from tests.unit.test_loop import Recorder, make_loop, recipe
from tests.unit.toy import ToyContext, flat

PROMPT = np.arange(3, dtype=np.int32)
TASKS = [Task(str(i), "?", "!") for i in range(6)]


def row(tokens: Sequence[int], score: float = 1.0, *, version: int = 0, logp: float = -0.5) -> Trajectory:
    """Three prompt tokens, then `tokens`, sampled at `version`."""
    every = np.array([*PROMPT, *tokens], np.int32)
    sampled = np.arange(len(every)) >= 3
    return Trajectory(
        tokens=every,
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=sampled.astype(np.float32),
        logprobs=np.where(sampled, logp, 0).astype(np.float32),
        version=np.where(sampled, version, -1).astype(np.int32),
        temperature=np.full(len(every), 0.7, np.float32),
        text=" ".join(map(str, tokens)),
        verdict=Verdict(score, bool(score), answer_key=str(tokens[-1])),
    )


def group(task: str, scores: Sequence[float], *, draw: int = 0, version: int = 0) -> Group:
    rows = tuple(row([5 + i, 4], s, version=version) for i, s in enumerate(scores))
    return Group(TASKS[int(task)], draw, rows, rewards=np.array(scores, np.float32), prompt_len=3)


def draw(index: int, size: int = 8) -> Draw:
    ctx = ToyContext(tasks=TASKS)
    return Draw(task=TASKS[0], index=index, step=3, group=size, sampling=Sampling(max_tokens=8), ctx=ctx)


def sampled(addon: Exgrpo, at: Draw) -> Group:
    out: list[Group] = []

    async def go() -> None:
        out.append(await addon.sampler(flat)(at))

    asyncio.run(go())
    return out[0]


def test_store_keeps_the_newest_of_a_task_and_of_all() -> None:
    store = ReplayStore(per_task=2, capacity=3)
    for step, task in enumerate("aaabb"):
        assert store.add(Entry(task, step, row([step, 9]))) is None
    assert [(e.task, e.step) for e in store.all()] == [("a", 2), ("b", 3), ("b", 4)]
    assert store.evict(before=3) == 1 and store.tasks == ["b"] and store.of("a") == ()
    assert store.evict(task="b") == 2 and len(store) == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-30, 0, width=32)), max_size=6))
def test_store_comes_back_bit_for_bit(rows: list[tuple[str, float]]) -> None:
    store = ReplayStore(per_task=3)
    for step, (task, logp) in enumerate(rows):
        store.add(Entry(task, step, row([step, 7], float(step % 2), version=step, logp=logp), score=logp))
    again = ReplayStore(per_task=3)
    again.load_state_dict(saved(store.state_dict()))
    assert again.state_dict() == store.state_dict()
    for a, b in zip(store.all(), again.all(), strict=True):
        for name in ("tokens", "origin", "weight", "logprobs", "version", "temperature"):
            x, y = getattr(a.row, name), getattr(b.row, name)
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
        assert (a.row.verdict, a.row.text, a.score) == (b.row.verdict, b.row.text, b.score)


def test_what_cannot_be_replayed_is_refused_with_a_reason() -> None:
    good = row([5, 6])
    assert unstorable(good) is None
    assert unstorable(replace(good, source="luffy")) == "source"
    assert unstorable(replace(good, generated_under=PROMPT)) == "source"
    assert unstorable(replace(good, verdict=Verdict(0.0, False, error="timeout"))) == "error"
    untrained = replace(good, weight=np.zeros(5, np.float32))
    assert unstorable(untrained) is None  # a sample beyond those trained on
    assert unstorable(replace(untrained, finish="length")) == "truncated"
    assert unstorable(replace(good, logprobs=np.full(5, np.nan, np.float32))) == "unknown behaviour"
    assert unstorable(replace(good, origin=np.full(5, Origin.DEMO, np.int8))) == "unknown behaviour"
    decode = ToyContext().decode
    assert unusable(good, prompt=PROMPT, decode=decode) is None
    assert unusable(good, prompt=PROMPT + 1, decode=decode) == "another prompt"
    assert unusable(replace(good, text="6 5"), prompt=PROMPT, decode=decode) == "another tokenizer"


def test_rows_leave_a_group_and_links_follow() -> None:
    g = group("0", [1, 0, 1, 0])
    g = g.with_(trajectories=(*g.trajectories[:2], *(replace(t, parent=(1, 4)) for t in g.trajectories[2:])))
    assert [t.parent for t in without(g, [0]).trajectories] == [None, (0, 4), (0, 4)]
    assert [t.parent for t in without(g, [1]).trajectories] == [None, None, None]
    assert without(g, [0, 3]).rewards.tolist() == [0, 1]


def test_lag_is_of_fresh_rows_and_rows_know_their_source() -> None:
    g = group("0", [1, 0], version=7)
    old = replayed([Entry("0", 2, row([8, 8], version=2))], source="exgrpo")
    g = g.with_(trajectories=(*g.trajectories, *old), rewards=np.array([1, 0, 1], np.float32))
    said = group_metrics([g], version=7)
    assert (said["lag/mean"], said["lag/max"]) == (0.0, 0.0)
    assert age(old[0], 7) == 5
    assert [r.source for r in collate([g])] == ["policy", "policy", "exgrpo"]


def test_the_steps_rewards_are_of_what_the_policy_sampled() -> None:
    """A demonstration, a replayed row and a greedy one say nothing of it, nor does a row in error."""
    g = group("0", [1, 0, 0, 0])
    broken = replace(g.trajectories[3], verdict=Verdict(0.0, False, error="timeout"))
    others = [replace(g.trajectories[0], source=s, finish="length") for s in ("luffy", "exgrpo", "greedy")]
    g = g.with_(trajectories=(*g.trajectories[:3], broken, *others))
    g = g.with_(rewards=np.array([0.9, 0.0, 0.0, np.nan, 5, 5, 5], np.float32))
    said = group_metrics([g], version=0)
    assert said["reward/mean"] == pytest.approx(0.3) and said["reward/pass_rate"] == pytest.approx(1 / 3)
    assert said["reward/errors"] == 1 and said["response/truncated"] == 0
    assert drop_metrics([g])["sampled/pass_rate"] == pytest.approx(1 / 3)
    failed = g.with_(trajectories=(*g.trajectories[1:3], *others), rewards=np.array([0, 0, 5, 5, 5], np.float32))
    assert group_metrics([g, failed], version=0)["groups/solved"] == 0.5
    dead = g.with_(trajectories=(broken,), rewards=np.array([np.nan], np.float32))
    said = group_metrics([dead], version=0)  # not a 0: nothing is known
    assert math.isnan(said["reward/mean"]) and math.isnan(said["reward/pass_rate"])


def test_measured_streams_serve_the_first_update_only_for_the_same_rows() -> None:
    g = group("0", [1, 0, 1])
    rows = collate([g])
    streamed = Streamed([g], old=[{}, {}, {}], tokens=[r.tokens for r in rows])
    assert streamed.of(rows) is streamed.old
    assert streamed.of(rows[:2]) is None and streamed.of((rows[1], rows[0], rows[2])) is None


def test_shaped_ratio() -> None:
    """f(1) = 0.909, its slope 0.0826; 0.25 at r = beta; r at 1e-6 vanishes without NaN."""
    logs = torch.tensor([0.0, math.log(0.1), math.log(1e-6)], dtype=torch.float64, requires_grad=True)
    f = shaped_ratio(logs, beta=0.1)
    (slope,) = torch.autograd.grad(f.sum(), logs)
    assert f.tolist() == pytest.approx([1 / 1.1, 0.5, 1e-6 / 0.100001], abs=1e-9)
    assert slope.tolist() == pytest.approx([0.1 / 1.21, 0.25, 1e-7 / 0.100001**2], abs=1e-9)


def test_exgrpo_weighs_by_the_recorded_behaviour() -> None:
    """At the weights that sampled the row f is 1/1.1 whatever the old log-prob is; the other row keeps its loss."""
    logp = torch.tensor([[-1.0, -3.0], [-1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    one = torch.ones_like(logp)
    behaviour = torch.tensor([[-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    view = TokenView(
        logp=logp, old_logp=-9 * one, behaviour_logp=behaviour, known=one, advantages=0.5 * one, weight=one,
        mark=torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
    )  # fmt: skip
    loss = Exgrpo(Config()).token_loss(view, 7 * one)
    r = math.exp(-2)
    assert loss[0].tolist() == pytest.approx([-0.5 / 1.1, -0.5 * r / (r + 0.1)], abs=1e-9)
    assert loss[1].tolist() == [7, 7]


def test_exgrpo_buckets() -> None:
    assert bucket_weights(range(1, 8), group=8) == pytest.approx(
        [0.00443, 0.05401, 0.24204, 0.39905, 0.24204, 0.05401, 0.00443], abs=5e-5
    )
    assert bucket_weights(range(1, 8), group=8).sum() == pytest.approx(1)
    assert [bucket(k / 7, 8) for k in range(1, 7)] == [1, 2, 3, 5, 6, 7]
    assert [bucket(k / 8, 8) for k in range(9)] == [1, 1, 2, 3, 4, 5, 6, 7, 7]


def test_exgrpo_pool_starts_fills_and_retires() -> None:
    addon = Exgrpo(Config(keep=2), seed=1)
    few = addon.observe([group("1", [1, 0, 0, 0]), group("2", [0, 0, 0, 0])], {})
    assert (few["started"], addon.store.tasks, addon.rates) == (0.0, ["1"], {"1": 0.25})
    assert sampled(addon, draw(1)) is not None and "exgrpo/replayed" not in sampled(addon, draw(1)).counts
    more = addon.observe([group("1", [1, 1, 1, 0], draw=1), group("3", [1, 1, 1, 1], draw=2)], {})
    assert (more["started"], more["retired"], more["stored"]) == (1.0, 1.0, 2.0)
    assert addon.store.tasks == ["1"] and addon.rates == {"1": 0.75}
    addon.observe([group("1", [1, 1, 1, 1], draw=3)], {})
    assert addon.store.tasks == [] and addon.retired == {"1", "3"}
    addon.observe([group("1", [1, 0, 0, 0], draw=4)], {})
    assert addon.store.tasks == [], "retired for good"


def test_exgrpo_replaces_one_response_in_exactly_half_of_the_draws() -> None:
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("1", [1, 1, 0, 0], version=2), group("4", [1, 0, 0, 1], draw=1, version=2)], {})
    groups = [sampled(addon, draw(i)) for i in range(10)]
    mine = [g for g in groups if g.counts.get("exgrpo/replayed")]
    assert len(mine) == 5 and {g.task.id for g in mine} <= {"1", "4"}
    for g in mine:
        assert [t.source for t in g.trajectories] == ["policy"] * 7 + ["exgrpo"] * 2
        assert (g.trajectories[-1].version[3:] == 2).all() and (g.trajectories[-1].logprobs[3:] == -0.5).all()
    plain = [g for g in groups if not g.counts.get("exgrpo/replayed")]
    assert all(g.task.id == "0" and len(g) == 8 for g in plain)
    again = Exgrpo(Config(), seed=1)
    again.load_state_dict(saved(addon.state_dict()))
    assert [sampled(again, draw(i)).task.id for i in range(10)] == [g.task.id for g in groups]


def test_exgrpo_keeps_the_response_of_lowest_entropy_now() -> None:
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("1", [1, 1, 1, 0])], {})
    g = sampled(addon, draw(1))
    values = [0.1] * 7 + [0.9, 0.2, 0.4]
    rows = [
        replace(t, streams={"entropy": (v * t.weight).astype(np.float32)})
        for t, v in zip(g.trajectories, values, strict=True)
    ]
    g = g.with_(trajectories=tuple(rows), rewards=np.arange(10, dtype=np.float32))
    (kept,) = addon.reward([g])
    assert len(kept) == 8 and kept.rewards.tolist() == [*range(7), 8]
    assert kept.trajectories[-1] is rows[8]


def test_exgrpo_refuses_rows_of_another_tokenizer_and_forgets_them() -> None:
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("1", [1, 0, 0, 1])], {})
    (first, second) = addon.store.of("1")
    addon.store.evict()
    for e in (first, second):
        addon.store.add(replace(e, row=replace(e.row, text="other")))
    g = sampled(addon, draw(1))
    assert len(g) == 8 and g.task.id == "0" and g.counts == {"exgrpo/refused": 2.0}
    said = addon.observe([g.with_(rewards=g.scores)], {})
    assert said["refused"] == 2.0 and addon.store.of("1") == ()


def test_exgrpo_later_rounds_of_a_draw_are_of_its_task() -> None:
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("4", [1, 0, 0, 1])], {})
    first = sampled(addon, draw(1))
    second = sampled(addon, replace(draw(1, 3), first=8))
    assert first.task.id == second.task.id == "4" and len(second) == 3


def test_importance_of_a_row_sampled_by_the_weights_that_train_it_is_1() -> None:
    values: F32 = np.array([-1.5, -0.25], np.float32)
    store = ReplayStore()
    store.add(Entry("1", 0, replace(row([5, 6]), logprobs=np.array([0, 0, 0, *values], np.float32))))
    (back,) = replayed(store.of("1"), source="x")
    assert np.exp(values - back.logprobs[3:]).tolist() == [1.0, 1.0]


def repo_group(addon: RePO, scores: Sequence[float]) -> Group:
    """A group of task 1 with what the add-on puts behind it, rewarded."""
    out: list[Group] = []

    async def go() -> None:
        out.append(await addon.guide(group("1", scores, draw=9, version=4), ToyContext(tasks=TASKS)))

    asyncio.run(go())
    return out[0].with_(rewards=out[0].scores)


@pytest.mark.parametrize("split", [True, False])
def test_repo_normalises_replayed_rows_apart(split: bool) -> None:
    """On [1,0,0,0], off [1,1,0,0], eps 1e-4: 1.4997/-.4999 and +-.8659; mixed 1.2074/-.7244."""
    addon = RePO(RePOConfig(k=4, split=split))
    addon.observe([group("1", [1, 1, 0, 0])], {})
    g = repo_group(addon, [1, 0, 0, 0])
    assert [t.source for t in g.trajectories] == ["policy"] * 4 + ["repo"] * 4
    (credited,) = Grpo(GrpoConfig(eps=1e-4)).advantage([g])
    found = [float(a[-1]) for a in credited.advantages or ()]
    sd, half = math.sqrt(15 / 56), math.sqrt(1 / 3)  # unbiased: of 3 right in 8, of 2 right in 4
    if split:
        on, off = [0.75 / 0.5001, *[-0.25 / 0.5001] * 3], 0.5 / (half + 1e-4)
        expected = [*on, off, off, -off, -off]
        assert expected[:2] == pytest.approx([1.4997, -0.4999], abs=5e-5)
    else:
        up, down = 0.625 / (sd + 1e-4), -0.375 / (sd + 1e-4)
        expected = [up, down, down, down, up, up, down, down]
        assert up == pytest.approx(1.2074, abs=2e-4)
    assert found == pytest.approx(expected, abs=1e-6)


def test_repo_samples_before_it_stores_and_waits_for_k() -> None:
    addon = RePO(RePOConfig(k=3, size=4))
    addon.observe([group("1", [1, 0])], {})
    assert len(repo_group(addon, [1, 0])) == 2
    addon.observe([group("1", [1, 0, 0])], {})
    g = repo_group(addon, [1, 0])
    assert len(g) == 5 and all((t.version[3:] == 0).all() for t in g.trajectories[2:])
    said = addon.observe([g], {})
    assert (said["replayed"], said["stored"], said["age"]) == (3.0, 4.0, 4.0)
    assert [e.step for e in addon.store.of("1")] == [0, 0, 4, 4], "the replayed rows are not stored again"


def test_repo_strategies() -> None:
    entries = [Entry("1", i, row([i, 4]), score=s) for i, s in enumerate([0.2, 1.0, 0.0, 0.5, 0.9])]

    def steps(k: int, **options: object) -> list[int]:
        return [e.step for e in chosen(entries, k, seed=3, **options)]  # type: ignore[arg-type]

    assert steps(2, strategy="recent") == [3, 4]
    assert steps(2, strategy="highest") == [1, 4]
    assert steps(2, strategy="variance") == [1, 2]
    assert steps(3, strategy="variance") == [1, 2, 4]
    assert steps(2, strategy="all") == [0, 1, 2, 3, 4]
    assert steps(2, strategy="random") == steps(2, strategy="random")
    assert {tuple(e.step for e in chosen(entries, 2, strategy="random", seed=s)) for s in range(40)} > {(0, 1)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=7), st.integers(1, 6))
def test_the_subset_of_largest_variance_is_the_best_of_all(scores: list[float], k: int) -> None:
    k = min(k, len(scores))
    entries = [Entry("1", i, row([1]), score=s) for i, s in enumerate(scores)]
    best = max(np.var(c) for c in combinations(scores, k))
    found = np.var([e.score for e in chosen(entries, k, strategy="variance", seed=0)])
    assert found == pytest.approx(best, abs=1e-9)


def test_repo_loss_is_two_means_each_clipped_to_its_own_behaviour() -> None:
    addon = RePO(RePOConfig(k=1, coef=0.5))
    fresh, old = row([5, 6, 7]), replace(row([8]), source="repo")
    g = group("1", [1, 0]).with_(trajectories=(fresh, old), rewards=np.array([1, 0], np.float32))
    rows = collate([g])
    scale = np.full(2, 0.25, np.float32)  # a mean over the 4 tokens
    said = addon.knobs(Update(rows=rows, stats=[{}, {}], update=0, step=0, seed=0, clip=(0.2, 0.3), scale=scale))
    assert said is not None and said.metrics == {"active": 1.0}
    assert (said.scalars["on"], said.scalars["off"]) == pytest.approx((4 / 3, 4.0))
    one = torch.ones(1, 2, dtype=torch.float64)
    view = TokenView(
        logp=-one, old_logp=-9 * one, behaviour_logp=torch.tensor([[-1.1, -2.0]], dtype=torch.float64), known=one,
        advantages=2 * one, weight=one, mark=one, knobs=said.scalars,
    )  # fmt: skip
    loss = addon.token_loss(view, 7 * one)
    assert loss.tolist()[0] == pytest.approx([-0.5 * 4 * 2 * math.exp(0.1), -0.5 * 4 * 2 * 1.3], abs=1e-6)
    assert addon.token_loss(replace(view, mark=0 * one), 7 * one).tolist()[0] == pytest.approx([28 / 3] * 2, abs=1e-6)


class RunContext(ToyContext):
    """A toy run that has steps."""

    def at(self, step: int) -> RunContext:
        return RunContext(step=step, tasks=TASKS)


def replaying_loop(steps: int) -> tuple[Loop, Recorder]:
    """ExGRPO and RePO together on three tasks that return, in a loop without engines."""
    addons: list[AddOn] = [Exgrpo(Config(start=0.1, keep=3), seed=1), RePO(RePOConfig(k=2), seed=2)]
    loop, _, recorder = make_loop(recipe(steps=steps, group=6, minibatches=2, keep="all"), addons=addons)

    async def sample(at: Draw) -> Group:
        g = await flat(replace(at, index=at.index + 10))
        rows = [replace(t, version=np.where(t.version >= 0, loop.step, -1).astype(np.int32)) for t in g.trajectories]
        return replace(g, draw=at.index, trajectories=tuple(rows))

    inner = sample
    for addon in reversed(addons):
        inner = addon.sampler(inner)
    loop.sample, loop.context, loop.tasks = inner, RunContext(tasks=TASKS), lambda draw: TASKS[draw % 3]
    return loop, recorder


async def test_a_resumed_run_replays_what_an_uninterrupted_one_does() -> None:
    whole, recorder = replaying_loop(6)
    await train(whole)
    first, before = replaying_loop(3)
    await train(first)
    states = [saved(addon.state_dict()) for addon in first.addons]
    second, after = replaying_loop(6)
    second.step, second.update, second.sync.version = 3, first.update, 3  # type: ignore[attr-defined]
    second.buffer.load_state_dict(first.buffer.state_dict())
    for addon, state in zip(second.addons, states, strict=True):
        addon.load_state_dict(state)
    await train(second)
    assert before.lines + after.lines == recorder.lines
    assert [a.state_dict() for a in second.addons] == [a.state_dict() for a in whole.addons]
    metrics = recorder.lines[-1][2]
    assert metrics["exgrpo/replayed"] == 2 and metrics["repo/replayed"] > 0 and metrics["repo/age"] > 0
    assert metrics["lag/max"] == 0
