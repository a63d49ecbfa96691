"""DeepSearch: the specification's tree, the search's promises, the cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.explore.deep_search import Config, DeepSearch, backed_up, token_scores
from rlvr.rollout.tree import Tree
from rlvr.types import Group
from tests.unit.test_tree import TASK, Fake, check, flat, leaf, same, sampled


def test_the_specifications_tree() -> None:
    """Chunks of 2 tokens: T1 = d1 d2 d3 right, T2 = d1 d2' d3' wrong."""
    rows = (leaf([1, 2, 3, 4, 5, 6], 1.0), leaf([1, 2, 7, 8, 9, 9], 0.0, (0, 5)))
    group = Group(TASK, 0, rows, prompt_len=3, counts={"deep_search/forks": 1.0, "deep_search/chunk": 2.0})
    first, second = token_scores(group, Tree.of(group), np.array([1.0, -1.0]), chunk=2)
    assert first[3::2] == pytest.approx([0.4621172, 0.6351490, 1], abs=1e-6)
    assert second[3::2] == pytest.approx([0.4621172, -0.6351490, -1], abs=1e-6)
    (credited,) = DeepSearch(Config()).advantage([group.with_(rewards=group.scores)])
    assert credited.advantages is not None  # the mean of the last tokens' scores is 0
    np.testing.assert_allclose(credited.advantages[0], first, atol=1e-6)
    np.testing.assert_allclose(credited.advantages[1], second, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "new", "after"),
    [(-0.5, 0.75, 0.75), (0.5, -0.25, 0.5), (0.5, 0.25, 0.75), (-0.5, -0.25, -0.75), (0, -1, -1)],
)
def test_values_go_up(value: float, new: float, after: float) -> None:
    assert backed_up(value, new) == after


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.integers(1, 12))
def test_a_search_ends_with_its_group(seed: int, depth: int, width: int, expansions: int) -> None:
    run = Fake(seed=seed)
    group = sampled(DeepSearch(Config(depth=depth, width=width, expansions=expansions)), run)
    check(group)
    assert len(group) == 4 and group.counts["deep_search/expansions"] <= expansions
    keys = [r.key for call in run.calls for r in call]
    assert len(set(keys)) == len(keys)
    again = sampled(DeepSearch(Config(depth=depth, width=width, expansions=expansions)), Fake(seed=seed))
    assert same(group, again)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(64, 120))
def test_a_search_keeps_to_the_budget(seed: int, budget: int) -> None:
    group = sampled(DeepSearch(Config(depth=4, width=3, budget=budget)), Fake(seed=seed))
    check(group, budget)
    assert len(group) == 4 or group.counts["deep_search/refused"] > 0


def test_one_chunk_is_plain_sampling() -> None:
    assert same(sampled(DeepSearch(Config(depth=1)), Fake()), flat())


def test_solutions_of_hard_prompts_come_back() -> None:
    method = DeepSearch(Config())
    rows = tuple(leaf([10, 11 + i], float(i == 2)) for i in range(4))
    hard = Group(TASK, 0, rows, prompt_len=3)
    assert method.observe([hard], {})["cached"] == 1
    copy = DeepSearch(Config())
    copy.load_state_dict(json.loads(json.dumps(method.state_dict())))
    group = sampled(copy, Fake())
    first, plain = group.trajectories[0], flat()
    assert first.source == "replay" and np.array_equal(first.tokens, rows[2].tokens)
    np.testing.assert_array_equal(first.logprobs, rows[2].logprobs)
    assert first.verdict is not None and first.verdict.correct and (first.version == -1).all()
    assert same(group.with_(trajectories=group.trajectories[1:]), plain.with_(trajectories=plain.trajectories[1:]))
    assert copy.advantage([group])[0] is group  # no tree: the estimator's
    easy = hard.with_(trajectories=(rows[2], rows[2], rows[0]))
    assert method.observe([easy], {})["cached"] == 0
    off = DeepSearch(Config(cache=False))
    assert off.observe([hard], {})["cached"] == 0
