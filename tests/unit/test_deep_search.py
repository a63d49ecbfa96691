"""DeepSearch: the specification's tree, the search's promises, the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.explore.base import Draw
from rlvr.explore.deep_search import Config, DeepSearch, Search, SearchNode, _preference, backed_up, token_scores
from rlvr.rollout.tree import Grower, Ledger, Tree, Twig
from rlvr.types import Group, Sampling, Verdict
from tests.unit.conformance import saved
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


def hard(right: int = 2) -> Group:
    """Three wrong answers, and a right one at this place."""
    rows = [leaf([10, 11 + i], float(i == right)) for i in range(4)]
    return Group(TASK, 0, tuple(replace(t, text=Fake().decode(t.tokens[3:])) for t in rows), prompt_len=3)


def test_solutions_of_hard_prompts_come_back() -> None:
    method, before = DeepSearch(Config()), hard()
    rows = before.trajectories
    heat = np.linspace(1.5, 0.5, 5).astype(np.float32)  # as annealing leaves it
    before = before.with_(trajectories=(*rows[:2], replace(rows[2], temperature=heat), rows[3]))
    assert method.observe([before], {})["cached"] == 1
    copy = DeepSearch(Config())
    copy.load_state_dict(saved(method.state_dict()))
    assert copy.state_dict() == method.state_dict()
    group = sampled(copy, Fake())
    first, plain = group.trajectories[0], flat()
    assert first.source == "deep_search" and np.array_equal(first.tokens, rows[2].tokens)
    np.testing.assert_array_equal(first.logprobs, rows[2].logprobs)
    np.testing.assert_array_equal(first.temperature, heat)
    assert first.verdict is not None and first.verdict.correct and first.weight.tolist() == [0, 0, 0, 1, 1]
    assert same(group.with_(trajectories=group.trajectories[1:]), plain.with_(trajectories=plain.trajectories[1:]))
    assert copy.advantage([group])[0] is group  # no tree: the estimator's
    assert copy.observe([group], {})["replayed"] == 1
    easy = before.with_(trajectories=(rows[2], rows[2], rows[0]))
    assert method.observe([easy], {})["cached"] == 0
    off = DeepSearch(Config(cache=False))
    assert off.observe([before], {})["cached"] == 0


def test_a_remembered_solution_says_nothing_of_how_hard_the_prompt_is() -> None:
    """One of eight own responses right, beside two replayed ones: 3 of 10 would be above a quarter."""
    method = DeepSearch(Config())
    own = [leaf([20 + i], float(i == 7)) for i in range(8)]
    old = [replace(leaf([9, i], 1.0), source="deep_search") for i in range(2)]
    group = Group(TASK, 0, (*old, *own), prompt_len=3)
    assert method.observe([group], {})["cached"] == 1
    assert [e.row.tokens.tolist() for e in method.store.of("t")] == [[1, 2, 3, 27]]
    quarter = group.with_(trajectories=(*old, *own[4:]))
    assert method.observe([quarter], {})["cached"] == 1  # at most a quarter
    assert method.observe([quarter.with_(trajectories=tuple(own[5:]))], {})["cached"] == 0


def test_a_solution_of_another_tokenizer_is_refused_counted_and_forgotten() -> None:
    method = DeepSearch(Config())
    group = hard()
    method.observe([group.with_(trajectories=tuple(replace(t, text="7 7") for t in group.trajectories))], {})
    assert method.store.tasks == ["t"]
    group = sampled(method, Fake())
    assert same(group, sampled(DeepSearch(Config()), Fake())) and group.counts["deep_search/refused_rows"] == 1
    said = method.observe([group.with_(trajectories=tuple(hard(9).trajectories))], {})
    assert (said["refused_rows"], said["replayed"], said["cached"]) == (1, 0, 0)


def bare() -> Search:
    """A search of chunks of 2 tokens, before anything."""
    return Search(
        Config(depth=4), Grower(Draw(TASK, 0, 0, 2, Sampling(), ctx=Fake()), Fake(), Ledger(None), "x", 3), chunk=2
    )


def grown(search: Search, parent: SearchNode | None, *path: int, end: Verdict | None = None, **row: Any) -> SearchNode:
    """A node below `parent`, in the search's lists."""
    made = SearchNode(Twig(replace(leaf([1], 0.0), verdict=end, **row), path, ()), parent, end=end is not None)
    search.waiting += [made] if end else []
    search.nodes += [made] if path else []
    if parent is not None:
        parent.children.append(made)
    return made


def test_a_deep_end_counts_at_least_a_tenth_on_its_way() -> None:
    search = bare()
    way = [grown(search, None)]
    for depth in range(1, 30):
        way.append(grown(search, way[-1], *[0] * depth, end=Verdict(1.0, True) if depth == 29 else None))
    search._count(way[-1])
    assert [way[d].value for d in (0, 1, 2, 3, 14, 29)] == pytest.approx([0.1, 0.1, 0.1, 4 / 30, 0.5, 1.0])
    group = Group(TASK, 0, (leaf(range(10, 40), 1.0),), prompt_len=3)
    (scores,) = token_scores(group, Tree.of(group), np.array([1.0]), chunk=1)
    assert scores[3:].tolist() == pytest.approx([*np.tanh([max((d + 1) / 31, 0.1) for d in range(1, 30)]), 1.0])


def test_where_the_search_goes() -> None:
    search = bare()
    root = grown(search, None)
    good, fair, end = grown(search, root, 0), grown(search, root, 1), grown(search, root, 2, end=Verdict(0.0, False))
    root.visits, good.visits, fair.visits = 9, 4, 4
    good.value, fair.value = 2.0, 1.0  # Q .5 and .25
    assert search._next(root, found=False) is good
    fair.visits, fair.value = 1, 0.25  # as good, and visited less
    good.value = 1.0
    assert search._next(root, found=False) is fair and end not in search._open()
    below, other = grown(search, good, 0, 0), grown(search, fair, 1, 0)
    good.expanded = fair.expanded = True
    assert set(search._open()) == {below, other}
    good.value, fair.value = 2.0, -1.0
    assert search._next(root, found=True) is below  # the parent of larger Q
    assert search._promise(below) == pytest.approx(0.4 * np.tanh(0.5) + 0.01 * np.sqrt(2 / 4))
    fair.value, fair.visits = 2.0, 4
    deep = grown(search, other, 1, 0, 0)
    other.value, other.visits, other.expanded = 0.5, 1, True
    assert search._next(end, found=False) is deep  # nothing below it; of equal parents the deeper node
    assert search._next(None, found=False) is deep


def test_which_end_counts_first() -> None:
    search = bare()
    root = grown(search, None)
    sure, unsure = (np.array([0, 0, 0, x], np.float32) for x in (-0.1, -2.0))
    right, wrong, error = Verdict(1.0, True), Verdict(0.0, False), Verdict(0.0, False, error="timeout")
    ends = [
        grown(search, root, 0, end=error, logprobs=sure),
        grown(search, root, 1, end=wrong, logprobs=sure, finish="length"),
        grown(search, root, 2, end=wrong, logprobs=unsure),
        grown(search, root, 3, end=wrong, logprobs=sure),
        grown(search, root, 4, end=right, logprobs=unsure),
        grown(search, root, 5, end=right, logprobs=sure, finish="length"),
    ]
    assert [ends.index(e) for e in sorted(ends, key=_preference)] == [5, 4, 3, 2, 1, 0]


async def test_new_nodes_are_visited_once_and_one_of_several_ends_counts() -> None:
    search = bare()
    root = grown(search, None)
    rows = [replace(leaf([7, 8], 0.0), finish="stop"), replace(leaf([9, 9], 0.0), finish="length"), None]
    sure = np.array([0, 0, 0, -0.01, -0.01], np.float32)
    rows += [replace(leaf([7, i], 0.0), finish="stop", logprobs=sure) for i in range(9, 13)]
    assert await search._adopt(root, rows)
    assert [(n.end, n.visits) for n in root.children if not n.end] == [(False, 1)]
    assert len(search.ends) == 1 and len(search.waiting) == 4 and root.visits == 1
    assert [end.visits for end in (*search.ends, *search.waiting)] == [1, 0, 0, 0, 0]
    ranks = [_preference(end) for end in (*search.ends, *search.waiting)]
    assert ranks[0] == min(ranks) < max(ranks)


async def test_ends_that_wait_fill_the_group_the_preferred_first() -> None:
    search = bare()
    search.config = Config(depth=4, expansions=1)
    logs = [np.array([0, 0, 0, x], np.float32) for x in (-3.0, -1.0, -2.0)]
    ends = await search.run([replace(leaf([5], 0.0), finish="stop", logprobs=x) for x in logs])
    assert [float(end.twig.row.logprobs[3]) for end in ends] == [-1.0, -2.0]  # a group of 2


def test_the_baseline_is_the_mean_of_the_last_scores() -> None:
    rows = (leaf([1, 2, 3, 4], 1.0), leaf([1, 2, 5, 6], 1.0, (0, 5)), leaf([7, 8], 0.0), leaf([9], None))
    counts = {"deep_search/forks": 1.0, "deep_search/chunk": 2.0}
    group = Group(TASK, 0, rows, prompt_len=3, counts=counts)
    (credited,) = DeepSearch(Config()).advantage([group.with_(rewards=group.scores)])
    assert credited.advantages is not None
    assert [float(a[-1]) for a in credited.advantages] == pytest.approx([2 / 3, 2 / 3, -4 / 3, 0], abs=1e-6)
    assert float(credited.advantages[0][3]) == pytest.approx(np.tanh(4 / 3) - 1 / 3, abs=1e-6)


def test_values_of_the_search_on_the_specifications_tree() -> None:
    """root .25, d1 .5, d2 .75, d3 1 after T1; T2 leaves d1 and the root as they are."""
    search = bare()
    right, wrong = Verdict(1.0, True), Verdict(0.0, False)

    def node(parent: SearchNode | None, *path: int, end: Verdict | None = None) -> SearchNode:
        return grown(search, parent, *path, end=end)

    root = node(None)
    d1 = node(root, 0)
    d2, e2 = node(d1, 0, 0), node(d1, 0, 1)
    d3, e3 = node(d2, 0, 0, 0, end=right), node(e2, 0, 1, 0, end=wrong)
    search._count(d3)
    assert [n.value for n in (root, d1, d2, d3)] == [0.25, 0.5, 0.75, 1.0]
    search._count(e3)
    assert [n.value for n in (root, d1, d2, d3)] == [0.25, 0.5, 0.75, 1.0]
    assert [n.value for n in (e2, e3)] == [-0.75, -1.0] and root.visits == 2
    broken = node(d1, 0, 2, end=Verdict(0.0, False, error="timeout"))
    search._count(broken)
    assert search.ends == [d3, e3, broken] and (broken.value, root.visits) == (0.0, 2)
