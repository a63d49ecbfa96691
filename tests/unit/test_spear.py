"""SPEAR and the hook under it: rows of earlier steps in an update of their own, and nothing else changed by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlvr.batching import collate
from rlvr.corrections.tis import Config as TisConfig
from rlvr.corrections.tis import Tis
from rlvr.engine.deepspeed_loss import make_view
from rlvr.explore.base import AddOn, Draw, Update
from rlvr.explore.entropy_bonus import Config as BonusConfig
from rlvr.explore.entropy_bonus import EntropyBonus
from rlvr.explore.spear import Config, Spear, weight_at
from rlvr.loop import train
from rlvr.methods import ADVANTAGE
from rlvr.objectives.view import TokenView
from rlvr.parts import Loop
from rlvr.recipe import Recipe
from rlvr.surrogates.clip import Clip
from rlvr.types import F32, Group, Metrics, Plan, Row, TokenBatch
from rlvr.update import behaved
from tests.unit.conformance import make, saved
from tests.unit.test_loop import Recorder, ToyPolicy, make_loop, recipe
from tests.unit.test_replay import TASKS, RunContext, group, row
from tests.unit.toy import flat

CTX = RunContext(tasks=TASKS)


def credited(task: str, scores: Sequence[float], *, draw: int = 0) -> Group:
    """A group with advantages R - mean R, as the loop hands it to `observe`."""
    g, mean = group(task, scores, draw=draw), float(np.mean(scores))
    rows = zip(g.trajectories, scores, strict=True)
    return g.with_(advantages=tuple((t.weight * (s - mean)).astype(np.float32) for t, s in rows))


def scalars(groups: Sequence[Group]) -> list[list[float]]:
    """The advantage of each replayed row, at its last token."""
    return [[float(a[-1]) for a in g.advantages or ()] for g in groups]


def test_weight_rises_by_half_a_cosine() -> None:
    at = [weight_at(k, coef=1.0, rise=300) for k in (0, 75, 150, 300, 900)]
    assert at == pytest.approx([0.0, 0.146447, 0.5, 1.0, 1.0], abs=1e-6) and at[0] == 0.0
    assert weight_at(100, coef=0.5, rise=200) == pytest.approx(0.25)


def test_advantages_are_made_anew_and_what_is_not_above_0_is_left_out() -> None:
    """Means .5, .4, .25 of three groups: the median is .4; rewards 1, .5 and .3 give .6, .1 and nothing."""
    addon = Spear(Config(size=2))
    addon.observe([credited("1", [1, 0]), credited("2", [0.5, 0.3]), credited("3", [0.3, 0.2])], {})
    assert [(e.task, e.score) for e in addon.store.all()] == [("1", 1.0), ("2", 0.5), ("3", pytest.approx(0.3))]
    assert addon.replay(CTX) == [], "two are above the median, and more than two are needed"
    addon.observe([credited("1", [1, 0], draw=3), credited("4", [0.4, 0.4], draw=4)], {})
    groups = addon.replay(CTX)
    assert addon._baseline() == pytest.approx(0.4)
    assert [(g.task.id, g.draw) for g in groups] == [("1", -1), ("2", -2)]
    assert scalars(groups) == [pytest.approx([0.6, 0.6]), pytest.approx([0.1])]
    for g in groups:
        assert [t.source for t in g.trajectories] == ["spear"] * len(g) and g.prompt_len == 3
        assert all((a[t.weight == 0] == 0).all() for a, t in zip(g.advantages or (), g.trajectories, strict=True))
    assert groups[0].rewards is not None and groups[0].rewards.tolist() == [1, 1]


def test_the_store_is_empty_after_use_and_only_then() -> None:
    addon = Spear(Config(size=3))
    said = addon.observe([credited("1", [1, 1, 0, 0]), credited("2", [1, 0, 0, 0], draw=1)], {})
    assert (said["stored"], said["replayed"]) == (3.0, 0.0) and addon.replay(CTX) == []
    said = addon.observe([credited("3", [1, 0, 0, 0], draw=2)], {})
    assert said["stored"] == 4.0 and sum(map(len, addon.replay(CTX))) == 4
    said = addon.observe([credited("4", [1, 0, 0, 0], draw=3)], {})
    assert (said["replayed"], said["age"], said["stored"]) == (4.0, 1.75, 1.0)
    assert [e.task for e in addon.store.all()] == ["4"]


def test_old_rows_leave_and_the_history_is_bounded() -> None:
    addon = Spear(Config(size=9, tolerate=2, baseline=3))
    for step in range(5):
        addon.observe([credited(str(step), [1, 0]), credited("5", [0, 0], draw=1)], {})
        assert max(addon.steps - e.step for e in addon.store.all()) <= 2
    assert [e.step for e in addon.store.all()] == [3, 4] and addon.history == [0.0, 0.5, 0.0]


def test_rows_of_others_count_nowhere() -> None:
    """A demonstration is neither stored nor in the history; nor is a row in error."""
    addon = Spear(Config(size=1))
    g = credited("1", [1, 1, 0, 0])
    rows = (replace(g.trajectories[0], source="luffy"), *g.trajectories[1:])
    said = addon.observe([g.with_(trajectories=rows)], {})
    assert said["stored"] == 1.0 and addon.history == pytest.approx([1 / 3])


def test_rows_of_another_tokenizer_are_refused_and_counted() -> None:
    addon = Spear(Config(size=1))
    addon.observe([credited("1", [1, 0]), credited("2", [1, 0], draw=1)], {})
    first = addon.store.of("1")[0]
    addon.store.evict(task="1")
    addon.store.add(replace(first, row=replace(first.row, text="other")))
    assert [g.task.id for g in addon.replay(CTX)] == ["2"]
    said = addon.observe([], {})
    assert (said["replayed"], said["refused"], said["stored"]) == (1.0, 1.0, 0.0)


def test_a_store_that_never_fills_is_told() -> None:
    """Four prompts of two responses for 10 steps are 80 rows."""
    assert Spear(Config(size=79)).problems(recipe()) == [] == Spear(Config(size=80, coef=0)).problems(recipe())
    (said,) = Spear(Config(size=80)).problems(recipe())
    assert "10 steps have 80 responses" in said and "lower size" in said


def test_only_the_update_of_its_rows_is_weighed() -> None:
    addon = Spear(Config(rise=200))
    addon.steps = 100
    fresh = collate([group("1", [1, 0])])

    def knobs(rows: Sequence[Row]) -> tuple[dict[str, float], Metrics]:
        said = addon.knobs(Update(rows=rows, stats=[{}, {}], update=0, step=0, seed=0, clip=(0.2, 0.3)))
        assert said is not None
        return dict(said.scalars), said.metrics

    assert knobs(fresh) == ({}, {"active": 0.0})
    scalars, metrics = knobs([replace(r, source="spear") for r in fresh])
    assert scalars == {"weight": pytest.approx(0.5)} and metrics["active"] == 4.0
    one = torch.ones(1, 2)
    view = TokenView(one, one, one, one, one, one, knobs=scalars)
    assert addon.token_loss(view, 8 * one).tolist() == [[4.0, 4.0]]
    assert addon.token_loss(replace(view, knobs={}), 8 * one).tolist() == [[8.0, 8.0]]


def test_the_ratio_of_a_replayed_row_is_to_its_behaviour_and_nothing_is_corrected_twice() -> None:
    """logp -.4, behaviour -.5: r = e^.1 inside the clip, loss -.6 r; at -.1, e^.4 is clipped to 1.28. TIS is 1."""
    old = replace(row([5, 6]), source="spear", streams={"old_logp": np.full(5, -9.0, np.float32)})
    g = group("1", [1.0]).with_(trajectories=(old,), advantages=((0.6 * old.weight).astype(np.float32),))
    (made,) = map(behaved, collate([g]))
    assert made.streams["old_logp"].tolist() == [0, 0, 0, -0.5, -0.5]
    view = make_view({"logp": torch.tensor([[0, 0, 0, -0.4, -0.1]])}, [made], extras=())
    loss, _ = Clip(Clip.Config(low=0.2, high=0.28)).loss(view)
    assert loss[0, 3:].tolist() == pytest.approx([-0.6 * math.exp(0.1), -0.6 * 1.28], abs=1e-6)
    weight, _ = Tis(TisConfig()).weights(view)
    assert weight[0, 3:].tolist() == [1.0, 1.0]


class Watching(ToyPolicy):
    """Keeps the batches too."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[TokenBatch] = []

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        self.batches.append(batch)
        return await super().step(batch, plan)


def imitating(steps: int, *addons: AddOn, **changes: object) -> tuple[Loop, Watching, Recorder]:
    """A loop without engines over three tasks; the estimator comes first, as in a run."""
    r: Recipe = recipe(steps=steps, group=6, keep="all", **changes)
    stack = [make(ADVANTAGE, "dr_grpo", {}, name="advantage"), *addons]
    loop, _, recorder = make_loop(r, addons=stack)

    async def sample(at: Draw) -> Group:
        g = await flat(replace(at, index=at.index + 10))
        rows = [replace(t, version=np.where(t.version >= 0, loop.step, -1).astype(np.int32)) for t in g.trajectories]
        return replace(g, draw=at.index, trajectories=tuple(rows))

    policy = Watching()
    loop.sample, loop.context, loop.policy = sample, CTX, policy
    loop.tasks = lambda draw: TASKS[draw % 3]
    return loop, policy, recorder


def spear(**options: object) -> Spear:
    return Spear(Config.model_validate({"size": 16, "rise": 4} | options))


def seen(batch: TokenBatch, plan: Plan) -> tuple[list[tuple[str, bytes, bytes, list[str]]], F32, Plan]:
    rows = [(r.key, r.tokens.tobytes(), r.advantages.tobytes(), sorted(r.streams)) for r in batch.picked]
    return rows, batch.scale, replace(plan, knobs={}, marks={})


@pytest.mark.parametrize("minibatches", [1, 2])
async def test_a_replay_is_one_more_update_and_the_others_are_those_of_a_run_without_it(minibatches: int) -> None:
    schedule = {"lr": 1.0, "schedule": "linear"}
    bare, without, plain = imitating(6, minibatches=minibatches, optimizer=schedule)
    await train(bare)
    loop, policy, recorder = imitating(6, spear(), minibatches=minibatches, optimizer=schedule)
    await train(loop)
    sources = [{r.source for r in b.picked} for b in policy.batches]
    mine = [i for i, s in enumerate(sources) if s == {"spear"}]
    assert mine and all(s in ({"policy"}, {"spear"}) for s in sources)
    fired = [line[2]["spear/replayed"] for line in recorder.lines]
    assert len(mine) == sum(n > 0 for n in fired) and fired[0] == 0.0
    assert [len(policy.batches[i]) for i in mine] == [n for n in fired if n > 0] and all(n > 16 for n in fired if n)
    own = [seen(b, p) for i, (b, p) in enumerate(zip(policy.batches, policy.plans, strict=True)) if i not in mine]
    alone = [seen(b, p) for b, p in zip(without.batches, without.plans, strict=True)]
    for (rows, scale, plan), (rows0, scale0, plan0) in zip(own, alone, strict=True):
        assert rows == rows0 and np.array_equal(scale, scale0) and replace(plan, update=plan0.update) == plan0
    assert [p.update for p in policy.plans] == list(range(len(policy.plans))), "every update has a number of its own"
    assert all(policy.plans[i].lr == policy.plans[i - 1].lr and not policy.plans[i].first for i in mine)
    for i in mine:
        batch = policy.batches[i]
        assert all((r.advantages[r.weight != 0] > 0).all() and r.group < 0 for r in batch.picked)
        assert len({r.key for r in batch.picked}) == len(batch)
        assert all(np.array_equal(r.streams["old_logp"], r.logprobs) for r in batch.picked)
        assert sum(float(r.weight.sum()) * s for r, s in zip(batch.picked, batch.scale, strict=True)) == pytest.approx(
            1
        )
    for (_, draws, said), (_, draws0, said0) in zip(recorder.lines, plain.lines, strict=True):
        assert draws == draws0
        assert {k: v for k, v in said.items() if k in said0 and not k.startswith("train/")} == {
            k: v for k, v in said0.items() if not k.startswith("train/")
        }


async def test_a_coefficient_of_0_is_a_run_without_it() -> None:
    bare, without, _ = imitating(5, minibatches=2)
    await train(bare)
    loop, policy, _ = imitating(5, spear(coef=0.0), minibatches=2)
    await train(loop)
    assert policy.measured == without.measured and policy.plans == without.plans
    for (rows, scale, _), (rows0, scale0, _) in zip(
        map(seen, policy.batches, policy.plans), map(seen, without.batches, without.plans), strict=True
    ):
        assert rows == rows0 and np.array_equal(scale, scale0)


async def test_replayed_rows_have_the_streams_that_others_need_and_no_forward_for_their_old_policy() -> None:
    loop, policy, _ = imitating(6, spear())
    await train(loop)
    assert policy.measured == [] and any("spear" in p.knobs and p.knobs["spear"] for p in policy.plans)
    needy = EntropyBonus(BonusConfig(coef=0.1))
    needy.needs = frozenset({"entropy"})
    loop, policy, _ = imitating(6, needy, spear(), kl={"coef": 0.1})
    await train(loop)
    for batch in policy.batches:
        old = {"old_logp"} if {r.source for r in batch.picked} == {"spear"} else set()
        assert all(set(r.streams) == {"entropy", "ref_logp"} | old for r in batch.picked)


async def test_a_resumed_run_replays_what_an_uninterrupted_one_does() -> None:
    whole, everything, recorder = imitating(7, spear(), minibatches=2)
    await train(whole)
    for cut in (2, 3, 4):  # somewhere between what fills the store and what empties it
        first, some, before = imitating(cut, spear(), minibatches=2)
        await train(first)
        second, rest, after = imitating(7, spear(), minibatches=2)
        second.step, second.update, second.sync.version = cut, first.update, cut  # type: ignore[attr-defined]
        second.buffer.load_state_dict(first.buffer.state_dict())
        for addon, old in zip(second.addons, first.addons, strict=True):
            addon.load_state_dict(saved(old.state_dict()))
        await train(second)
        assert before.lines + after.lines == recorder.lines
        assert some.plans + rest.plans == everything.plans
        assert [a.state_dict() for a in second.addons] == [a.state_dict() for a in whole.addons]
    assert sum(line[2]["spear/replayed"] > 0 for line in recorder.lines) > 1
