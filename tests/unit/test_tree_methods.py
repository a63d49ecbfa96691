"""Methods on trees: the specification's numbers, and what they sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.errors import EngineError
from rlvr.explore import fr3e, spo_tree
from rlvr.rollout.tree import Tree
from rlvr.types import Completion, Request
from tests.unit.test_tree import Fake, check, flat, on_nodes, rt1, same, sampled


def test_segments_of_the_reference_tree() -> None:
    group = rt1()
    values = spo_tree.segment_advantages(Tree.of(group), group.scores.astype(float))
    assert on_nodes(group, values) == pytest.approx([0.25, -0.25, 0.5, -0.5, 0, 0], abs=1e-6)
    (credited,) = spo_tree.SpoTree(spo_tree.Config()).advantage([group])
    assert [t.weight.tolist() for t in credited.trajectories] == [
        [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1], [0] * 8,
    ]  # fmt: skip
    (equal,) = spo_tree.SpoTree(spo_tree.Config()).advantage([rt1(1.0, 1.0, 1.0, 1.0)])
    assert not any(t.weight.any() for t in equal.trajectories)  # no edge is trained on
    by_std = spo_tree.segment_advantages(Tree.of(group), group.scores.astype(float), std=True)
    assert on_nodes(group, by_std) == pytest.approx([1, -1, 1, -1, 0, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(2, 6))
def test_segments_add_up_to_the_reward(seed: int, factors: list[int], segment: int) -> None:
    run = Fake(seed=seed)
    group = sampled(spo_tree.SpoTree(spo_tree.Config(factors=tuple(factors), segment=segment)), run)
    check(group)
    tree, rewards = Tree.of(group), group.scores.astype(float)
    values, root = spo_tree.segment_advantages(tree, rewards), tree.nested_means(rewards)[0]
    for path, reward in zip(tree.paths, rewards, strict=True):
        assert sum(values[n] for n in path) == pytest.approx(reward - root)
    assert len(group) <= 4 * int(np.prod(factors))
    starts = {t.parent[1] - 3 for t in group.trajectories if t.parent}
    assert all(at % segment == 0 for at in starts)


class Endless(Fake):
    """No response ends before its limit."""

    def _one(self, r: Request) -> Completion:
        m = r.sampling.max_tokens
        rng = np.random.default_rng([r.sampling.seed or 0, len(r.tokens)])
        tokens, zeros = rng.integers(10, 99, m).astype(np.int32), np.zeros(m, np.int32)
        return Completion(r.key, tokens, zeros.astype(np.float32), zeros, "length")


def test_a_segment_tree_by_hand() -> None:
    """4 first segments of 3 tokens, 2 of 3 behind each, 3 to the end behind those: 4 + 8 nodes of 3, 24 of 10."""
    method = spo_tree.SpoTree(spo_tree.Config(factors=(2, 3), segment=3))
    group = sampled(method, Endless())
    tree = Tree.of(group)
    sizes = sorted(n.end - n.start for n in tree.nodes[1:])
    assert sizes == [3] * 12 + [10] * 24 and len(group) == 24
    assert group.counts["spo_tree/decoded"] == 12 * 3 + 24 * 10
    # a budget that pays no second level: the first segments are scored as they stand, none is lost
    short = sampled(spo_tree.SpoTree(spo_tree.Config(factors=(2,), segment=15, budget=64)), Endless())
    assert len(short) >= 4 and {len(path) for path in Tree.of(short).paths} == {1, 2}
    assert all(t.verdict for t in short.trajectories) and short.counts["spo_tree/decoded"] <= 64


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(64, 200))
def test_segments_keep_to_the_budget(seed: int, budget: int) -> None:
    method = spo_tree.SpoTree(spo_tree.Config(factors=(3, 2), segment=4, budget=budget))
    check(sampled(method, Fake(seed=seed)), budget)


@pytest.mark.parametrize(
    "method", [spo_tree.SpoTree(spo_tree.Config(factors=())), fr3e.FR3E(fr3e.Config(k=0))], ids=lambda m: m.kind
)
def test_without_branches_they_are_plain_sampling(method: spo_tree.SpoTree | fr3e.FR3E) -> None:
    assert same(sampled(method, Fake()), flat())


def test_a_segment_tree_that_fails_is_plain_sampling() -> None:
    class Once(Fake):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            if any("spo_tree" in r.key for r in requests):
                raise EngineError("lost")
            return await super().generate(requests)

    group = sampled(spo_tree.SpoTree(spo_tree.Config(segment=3)), Once())
    assert same(group, flat()) and group.counts["spo_tree/failed"] == 1


def test_fr3e_numbers() -> None:
    assert [round(fr3e.alpha(d), 4) for d in (-0.5, 0, 0.25, 0.5)] == [1.6487, 1.0, 0.7788, 0.6065]
    rewards = np.array([1, 0, 0, 0, 1, 0, 1, 1, np.nan, 1, 1, 1])
    out = fr3e.modulated(rewards, [3] * 4 + [6] * 4 + [9] * 4)  # V = 0.25, 0.75, 1
    assert out[:4] == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert out[4:8] == pytest.approx(0.6065307 * np.array([0.5, -1.5, 0.5, 0.5]), abs=1e-5)
    assert not out[8:].any()
    back = fr3e.modulated(np.array([1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0.0]), [3] * 4 + [6] * 4 + [9] * 4)
    half = np.array([0.5, -0.5, 0.5, -0.5]) / np.sqrt(
        1 / 3
    )  # V falls by 0.25 from the state before, not from the first
    assert back[8:] == pytest.approx(np.exp(0.25) * half, abs=1e-5)
    level = fr3e.modulated(np.array([1.0, 0, 0, 1]), [3, 3, 6, 6])  # no change of value: plain GRPO at each state
    assert level == pytest.approx([0.70710678, -0.70710678, -0.70710678, 0.70710678], abs=1e-5)


def test_fr3e_returns_to_uncertain_places() -> None:
    assert fr3e.uncertain(np.array([-9, -1, -5, -4, 0, -3], np.float32), k=2, spacing=2) == [2, 5]
    assert fr3e.uncertain(np.array([0, -1, -5, -4, -3], np.float32), k=2, spacing=2) == [2, 4]  # just so far apart
    group = sampled(fr3e.FR3E(fr3e.Config(k=2, m=3, spacing=2)), Fake())
    check(group)
    assert len(group) == 4 + 2 * 3 and {t.parent[0] for t in group.trajectories if t.parent} == {0}
    assert same(group.with_(trajectories=group.trajectories[:4]), flat())
    (credited,) = fr3e.FR3E(fr3e.Config()).advantage([group.with_(rewards=group.scores)])
    for t in credited.trajectories[4:]:
        assert t.parent and not t.weight[: t.parent[1]].any() and t.weight[t.parent[1] :].all()
    decoded = sum(int(t.weight.sum()) for t in credited.trajectories)
    assert decoded == group.counts["fr3e/decoded"]  # the base, the chains and the suffixes


def test_an_error_row_has_no_part_in_a_segment() -> None:
    group = rt1(1.0, None, 0.0, 0.0)
    value = Tree.of(group).nested_means(np.where(group.valid, group.scores, np.nan).astype(float))
    assert value[0] == 0.5
