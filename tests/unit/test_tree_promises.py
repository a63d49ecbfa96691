"""What every tree method promises, whatever its shape: its budget, its rows, plain sampling when it is off or fails."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.advantages.grpo import Config as GrpoConfig
from rlvr.advantages.grpo import Grpo
from rlvr.batching import collate
from rlvr.credit import without_truncated
from rlvr.errors import EngineError
from rlvr.explore import deep_search, fr3e, latr, spo_tree, treerl
from rlvr.explore.base import Draw, Sample
from rlvr.explore.ead import EAD, annealing
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.guidance import with_rows
from rlvr.rollout.tree import Grower, Ledger, Tree
from rlvr.types import Completion, Group, Request, Sampling, Task, Verdict
from tests.unit.test_latr import Tied
from tests.unit.test_tree import TASK, Even, Fake, check, drawn, flat, leaf, on_nodes, rt1, same, sampled

# kind -> methods of a shape drawn from three small numbers
SHAPES: dict[str, Any] = {
    "treerl": lambda a, b, c: treerl.TreeRL(treerl.Config(n=a, l=1 + b % 2, t=c)),
    "spo_tree": lambda a, b, c: spo_tree.SpoTree(spo_tree.Config(factors=(a, b), segment=2 + c)),
    "fr3e": lambda a, b, c: fr3e.FR3E(fr3e.Config(k=a, m=b, spacing=c)),
    "latr": lambda a, b, c: latr.LATR(latr.Config(eta={0: a / 3}, steps=(b, b + c), reach=4 * c)),
    "deep_search": lambda a, b, c: deep_search.DeepSearch(deep_search.Config(depth=1 + a, width=b, expansions=c)),
}
OFF: dict[str, Any] = {
    "treerl": treerl.TreeRL(treerl.Config(n=0)),
    "spo_tree": spo_tree.SpoTree(spo_tree.Config(factors=())),
    "fr3e": fr3e.FR3E(fr3e.Config(k=0)),
    "latr": latr.LATR(latr.Config(eta={0: 0.0})),
    "deep_search": deep_search.DeepSearch(deep_search.Config(depth=1)),
}
SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


def with_budget(kind: str, shape: tuple[int, int, int], budget: int | None) -> Any:
    method = SHAPES[kind](*shape)
    return type(method)(method.config.model_copy(update={"budget": budget}))


@dataclass
class Failing(Tied):
    """The call number `fails` of those that ask for branches raises."""

    fails: int = 0
    error: type[Exception] = EngineError
    made: int = 0  # tokens

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any("/" in r.key.partition("/")[2] for r in requests):
            self.fails -= 1
            if self.fails < 0:
                raise self.error("lost")
        done = await super().generate(requests)
        self.made += sum(len(c.tokens) for c in done)
        return done


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=25, deadline=None)
@given(shape=SMALL, spare=st.integers(0, 150), seed=st.integers(0, 10**6), fails=st.integers(0, 12))
def test_no_budget_is_exceeded_and_no_response_lost(
    kind: str, shape: tuple[int, int, int], spare: int, seed: int, fails: int
) -> None:
    """Of budgets that the check lets through (4 chains of 16 tokens), whether the engine fails in the middle or not."""
    run = Failing(seed=seed, fails=fails)
    group = sampled(with_budget(kind, shape, 64 + spare), run)
    assert group.counts[f"{kind}/decoded"] == run.made <= 64 + spare
    assert all(t.verdict is not None and t.response_len <= 16 for t in group.trajectories)
    if not group.counts[f"{kind}/failed"]:
        check(group, 64 + spare)
    if kind != "latr":
        assert len(group) >= 4 or group.counts[f"{kind}/refused"] > 0
    keys = [r.key for call in run.calls for r in call if r.key.count("/") > 1]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=10, deadline=None)
@given(shape=SMALL, seed=st.integers(0, 10**6), timeout=st.booleans())
def test_a_tree_that_fails_is_plain_sampling(kind: str, shape: tuple[int, int, int], seed: int, timeout: bool) -> None:
    run = Failing(seed=seed, fails=0, error=TimeoutError if timeout else EngineError)
    group = sampled(with_budget(kind, shape, None), run)
    plain = drawn(flat_groups(Fake(seed=seed), Fake(seed=seed), Fake(), seed=seed), Fake(seed=seed))
    if group.counts[f"{kind}/failed"]:  # all chains may have ended before there was anything to branch
        assert same(group, plain) and not group.counts[f"{kind}/forks"]
        assert [t.verdict for t in group.trajectories] == [t.verdict for t in plain.trajectories]


def test_chains_that_nothing_is_left_for_stay_cut() -> None:
    """A failure with less left than a chain: one response of what is left, and the first pieces of the others."""
    method = spo_tree.SpoTree(spo_tree.Config(factors=(2,), segment=15, budget=64))

    class Long(Failing):
        def _one(self, r: Request) -> Completion:
            m = r.sampling.max_tokens
            return Completion(r.key, np.full(m, 9, np.int32), np.zeros(m, np.float32), np.zeros(m, np.int32), "length")

    group = sampled(method, Long(fails=0))
    assert [t.response_len for t in group.trajectories] == [4, 15, 15, 15]
    assert group.counts["spo_tree/decoded"] == 64 and group.counts["spo_tree/failed"] == 1
    assert all(t.finish == "length" and t.verdict for t in group.trajectories)


@pytest.mark.parametrize("kind", OFF)
def test_off_is_plain_sampling_bit_for_bit(kind: str) -> None:
    group = sampled(OFF[kind], Fake())
    assert same(group, flat()) and not group.counts
    assert OFF[kind].advantage([group])[0] is group


@pytest.mark.parametrize("kind", ["treerl", "spo_tree", "fr3e", "deep_search"])
def test_a_tree_that_was_saved_gives_the_same_advantages(kind: str) -> None:
    method = SHAPES[kind](3, 3, 2) if kind != "deep_search" else SHAPES[kind](3, 3, 9)
    group = sampled(method, Tied())
    assert group.counts[f"{kind}/forks"] > 0
    group = group.with_(rewards=(np.arange(len(group)) % 3 == 0).astype(np.float32))
    (one,), (two,) = method.advantage([group]), method.advantage([pickle.loads(pickle.dumps(group))])
    assert one.advantages is not None and two.advantages is not None
    for a, b in zip(one.advantages, two.advantages, strict=True):
        assert a.tobytes() == b.tobytes()
    assert any(a.any() for a in one.advantages)


@pytest.mark.parametrize("kind", ["treerl", "spo_tree", "fr3e"])
def test_equal_rewards_say_nothing(kind: str) -> None:
    method = SHAPES[kind](2, 2, 2)
    group = sampled(method, Tied())
    for value in (0.0, 0.7):
        (credited,) = method.advantage([group.with_(rewards=np.full(len(group), value, np.float32))])
        assert credited.advantages is not None
        assert max(float(np.abs(a).max()) for a in credited.advantages) < 1e-6


@settings(max_examples=15, deadline=None)
@given(shape=SMALL, seed=st.integers(0, 10**6), kind=st.sampled_from(["treerl", "spo_tree", "deep_search"]))
def test_each_token_is_trained_once(shape: tuple[int, int, int], seed: int, kind: str) -> None:
    method = SHAPES[kind](*shape)
    method = type(method)(method.config.model_copy(update={"rows": "edge"}))
    method.drop_zero = False
    group = sampled(method, Fake(seed=seed))
    (credited,) = method.advantage([group.with_(rewards=group.scores)])
    tree, rows = Tree.of(group), collate([credited])
    sizes = sum(node.end - node.start for node in tree.nodes)
    assert sum(int(r.weight.sum()) for r in rows) == sizes or not group.counts[f"{kind}/forks"]


def test_plain_grpo_on_the_reference_tree() -> None:
    group = rt1()
    (credited,) = Grpo(GrpoConfig(std=False)).advantage([group])
    assert credited.advantages is not None
    assert [float(a[-1]) for a in credited.advantages] == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert float(credited.advantages[0][3]) == 0.75 and float(credited.advantages[2][3]) == -0.25  # the path's own


def test_a_shared_token_belongs_to_a_row_that_came_to_its_end() -> None:
    """The first row was cut: with `overlong: mask` it leaves the loss, and would take the shared prefix with it."""
    group = rt1()
    rows = group.trajectories
    [group] = without_truncated([group.with_(trajectories=(replace(rows[0], finish="length"), *rows[1:]))])
    for layout in ("path_dedup", "edge"):
        (credited,) = treerl.TreeRL(treerl.Config(rows=layout)).advantage([group])
        assert [t.weight.tolist() for t in credited.trajectories[:3:2]] == [[0] * 7, [0, 0, 0, *[1] * 5]]
        trained = [int(tok) for r in collate([credited]) for tok in r.tokens[r.weight > 0]]
        assert sorted(trained) == [10, 11, 14, 15, 16, 20, 21, 22, 23, 24, 25, 26]


def test_a_group_that_guidance_replaced_is_the_estimators() -> None:
    """GHPO asks the whole group again: no branch is left, and the tree has nothing to say."""
    method = treerl.TreeRL(treerl.Config())
    group = rt1()
    hinted = {i: replace(leaf([30 + i], float(i == 0)), source="ghpo") for i in range(4)}
    after = with_rows(group, hinted, {}).with_(rewards=np.array([1, 0, 0, 0], np.float32))
    assert after.counts["treerl/forks"] == 2
    assert method.advantage([after])[0] is after
    one = with_rows(group, {1: hinted[1]}, {}).with_(rewards=group.scores)
    assert method.advantage([one])[0] is not one and on_nodes(group, np.arange(7.0))  # A and its branch are left


def test_branches_are_verified_against_the_task_of_their_chains() -> None:
    """A sampler below may have taken another task (ExGRPO does)."""
    other, asked = Task("other", "?", "!"), []

    class Asked(Fake):
        async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
            asked.append(task.id)
            return await super().score(task, responses)

    def below(sample: Sample) -> Sample:
        async def replaced(draw: Draw) -> Group:
            return await sample(replace(draw, task=other))

        return replaced

    run = Asked()
    group = drawn(treerl.TreeRL(treerl.Config()).sampler(below(flat_groups(run, run, run, seed=5))), run)
    assert group.task is other and asked == ["other"] and TASK.id == "t"


@pytest.mark.parametrize("kind", SHAPES)
def test_a_branch_goes_on_cooling_where_its_prefix_ended(kind: str) -> None:
    """EAD before a tree: the temperature of token t is that of t, whichever request sampled it."""
    run, method = Tied(), SHAPES[kind](3, 3, 2) if kind != "deep_search" else SHAPES[kind](3, 3, 9)
    annealed = EAD(EAD.Config(d0=20.0, c=1))
    sample = annealed.sampler(method.sampler(flat_groups(run, run, run, seed=5)))
    group = drawn(sample, run)
    heat = annealing(0, annealed.config).at(np.arange(16))
    assert any(t.parent for t in group.trajectories) and len(set(heat.tolist())) > 5
    for t in group.trajectories:
        np.testing.assert_array_equal(t.temperature[3:], heat[: t.response_len])
    for r in (r for call in run.calls for r in call if not r.sampling.top):
        assert r.sampling.annealing is not None and r.sampling.annealing.start == len(r.tokens) - 3


@pytest.mark.parametrize("kind", SHAPES)
def test_two_draws_of_a_task_share_no_seed(kind: str) -> None:
    method, seeds = SHAPES[kind](3, 3, 2), []
    for index in (3, 4):
        run = Tied()
        sample = method.sampler(flat_groups(run, run, run, seed=5))
        asyncio.run(sample(Draw(TASK, index, 0, 4, Sampling(max_tokens=16), ctx=run)))
        seeds.append({r.sampling.seed for call in run.calls for r in call})
    assert len(seeds[0]) > 4 and not seeds[0] & seeds[1]


class Startling(Even):
    """The first token of every response is the most surprising one, of all but the chains."""

    def _one(self, r: Request) -> Completion:
        done = super()._one(r)
        if len(r.tokens) > 3:
            done.logprobs[0] = -99
        return done


def test_treerl_masks_the_first_token_of_a_branch_and_uses_no_place_twice() -> None:
    group = sampled(treerl.TreeRL(treerl.Config(n=2, l=3, t=1, answer="")), Startling(), max_tokens=64)
    links = [t.parent for t in group.trajectories if t.parent]
    starts = {i: t.parent[1] for i, t in enumerate(group.trajectories) if t.parent}
    assert len(links) == 4 * 2 * 3 and len(set(links)) == len(links)
    assert all(starts.get(row, -1) != at for row, at in links)
    assert any(row >= 4 for row, _ in links)  # branches of branches


def test_treerl_may_branch_at_the_token_that_completes_the_answer_and_not_behind() -> None:
    run = Fake()
    chain = replace(leaf([10, 11, 12, 13, 14], 0.0), logprobs=np.array([0, 0, 0, -1, -1, -9, -8, -2], np.float32))
    group = Group(TASK, 0, (chain,), prompt_len=3)
    grower = Grower(Draw(TASK, 0, 0, 1, Sampling()), run, Ledger(None), "treerl", 3)  # type: ignore[arg-type]
    method = treerl.TreeRL(treerl.Config(n=2, answer=r"\b12\b"))
    assert method._places(group, [0], set(), grower) == [(0, 5), (0, 3)]
    assert treerl.TreeRL(treerl.Config(n=2, answer=""))._places(group, [0], set(), grower) == [(0, 5), (0, 6)]


@pytest.mark.parametrize("form", ["leave_one_out", "leave_one_out_sqrt"])
def test_one_leaf_has_nobody_to_be_left_out_from(form: Any) -> None:
    tree = Tree.of(rt1())
    assert not treerl.leave_one_out(tree, np.array([1.0, np.nan, np.nan, np.nan]), form).any()
    assert treerl.leave_one_out(tree, np.array([1.0, 0.0, np.nan, np.nan]), form).any()


def test_latr_windows_stop_before_an_end() -> None:
    method = latr.LATR(latr.Config(steps=(5,), tau_ed=0.4))

    def fork(own: Sequence[int], parent: Sequence[int], finish: Any = "length", other: Any = "length") -> latr.Branch:
        root = latr.Branch(replace(leaf(parent, 0.0), finish=other), None, 3)
        return latr.Branch(replace(leaf(own, 0.0), finish=finish), root, 3)

    base = [1, 2, 3, 4, 5]
    assert not method._differs(fork([9, 2, 3, 4, 5], base))  # 1 edit of 5
    assert method._differs(fork([9, 9, 3, 4, 5], base))  # 2 of 5: 0.4 is not below 0.4
    assert method._differs(fork([9, 2, 3, 4, 5], base, finish="stop"))  # an end in the window: not compared
    assert method._differs(fork([9, 2, 3, 4, 5], base, other="stop"))
    assert not method._differs(fork([9, 2, 3, 4, 5, 0], [*base, 7], finish="stop"))  # the end is behind the window
    assert method._differs(fork([9, 2, 3, 4], base))  # too short to say


def test_latr_ties_by_hand() -> None:
    def at(first: float, second: float) -> bool:
        t = leaf([1], 0.0)
        logp = {"top_logp_1": np.log(np.full(4, first)), "top_logp_2": np.log(np.full(4, second))}
        return latr.ties(replace(t, streams=logp), 3, tau_abs=0.25, tau_rel=0.15)

    assert at(0.40, 0.30) and at(0.45, 0.31)
    assert not at(0.30, 0.24)  # not likely enough
    assert not at(0.50, 0.30)  # not near enough
    assert not at(0.5, 0.25) and not at(0.25, 0.25)  # p_2 > tau_abs, strictly


@pytest.mark.parametrize("step", [0, 99, 100, 299, 300])
def test_latr_share_by_step(step: int) -> None:
    method = latr.LATR(latr.Config())
    draw = Draw(TASK, 0, step, 8, Sampling())
    assert method.wanted(draw) == {0: 8, 99: 8, 100: 6, 299: 4, 300: 2}[step]


@settings(max_examples=20, deadline=None)
@given(group=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_latr_never_has_more_branches_than_it_may(group: int, seed: int) -> None:
    live: list[int] = []

    class Watched(latr.LATR):
        def _ties(self, branches: Any, *rest: Any) -> Any:
            live.append(len(branches))
            return super()._ties(branches, *rest)

    method = Watched(latr.Config(steps=(2, 4), reach=12, eta={0: 1.0}))
    got = sampled(method, Tied(seed=seed), group=group)
    assert max(live, default=0) < group and len(got) == group
