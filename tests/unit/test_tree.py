"""Trees: the reference tree RT-1 worked by hand, the ledger, rows, and what the methods sample."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.batching import collate, row_table
from rlvr.cluster_samplers import SamplerPool
from rlvr.errors import EngineError
from rlvr.explore.base import Draw
from rlvr.explore.treerl import Config, TreeRL, eptree, leave_one_out
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.tree import Ledger, Rows, Tree, tokens_saved
from rlvr.seeds import stable_seed
from rlvr.types import Completion, Group, Origin, Request, Sampling, Task, Trajectory, Verdict

PROMPT = np.array([1, 2, 3], np.int32)
TASK = Task("t", "?", "!")


def leaf(tokens: Sequence[int], reward: float | None, parent: tuple[int, int] | None = None) -> Trajectory:
    """Three prompt tokens, then `tokens`; reward None is an error."""
    every = np.array([*PROMPT, *tokens], np.int32)
    sampled = np.arange(len(every)) >= 3
    error = "timeout" if reward is None else None
    return Trajectory(
        tokens=every,
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=sampled.astype(np.float32),
        logprobs=np.where(sampled, -0.1 * np.arange(len(every)), 0).astype(np.float32),
        version=np.where(sampled, 0, -1).astype(np.int32),
        temperature=np.ones(len(every), np.float32),
        verdict=Verdict(reward or 0.0, bool(reward), error=error),
        parent=parent,
    )


def rt1(*rewards: float | None) -> Group:
    """RT-1: chains A and B of 2 + 2 tokens, each cut after 2, and one branch of 3 from each cut."""
    a, a2, b, b2 = rewards or (1.0, 0.0, 0.0, 0.0)
    rows = (
        leaf([10, 11, 12, 13], a), leaf([20, 21, 22, 23], b),
        leaf([10, 11, 14, 15, 16], a2, (0, 5)), leaf([20, 21, 24, 25, 26], b2, (1, 5)),
    )  # fmt: skip
    group = Group(TASK, 0, rows, prompt_len=3, counts={"treerl/forks": 2.0, "spo_tree/forks": 2.0, "fr3e/forks": 2.0})
    return group.with_(rewards=group.scores)


def on_nodes(group: Group, values: np.ndarray) -> list[float]:
    """Of pA, pB, A, A2, B, B2."""
    paths = Tree.of(group).paths
    a, b, a2, b2 = paths
    return [float(values[n]) for n in (a[0], b[0], a[1], a2[1], b[1], b2[1])]


def test_nodes_join_to_the_rows() -> None:
    group = rt1()
    tree = Tree.of(group)
    assert len(tree.nodes) == 7
    for t, path in zip(group.trajectories, tree.paths, strict=True):
        joined = np.concatenate(
            [group.trajectories[n.row].tokens[n.start : n.end] for n in map(tree.nodes.__getitem__, path)]
        )
        assert np.array_equal(joined, t.tokens[3:])
    assert tokens_saved(group) == 4
    value = tree.means(group.scores.astype(float))
    assert value[0] == 0.25 and on_nodes(group, value)[:2] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("paper", [2**-1.5, -(2**-1.5), 1.25, -0.75, -0.25, -0.25]),
        ("leave_one_out", [2 / 3, -2 / 3, 5 / 3, -1.0, -2 / 3, -2 / 3]),
        ("leave_one_out_sqrt", [0.47140452, -0.47140452, 1.76429774, -0.90236893, -0.43096441, -0.43096441]),
    ],
)
def test_treerl_on_the_reference_tree(form: Any, expected: list[float]) -> None:
    group = rt1()
    tree, rewards = Tree.of(group), group.scores.astype(float)
    values = eptree(tree, rewards) if form == "paper" else leave_one_out(tree, rewards, form)
    assert on_nodes(group, values) == pytest.approx(expected, abs=1e-6)
    (credited,) = TreeRL(Config(form=form)).advantage([group])
    assert credited.advantages is not None
    np.testing.assert_allclose(
        credited.advantages[2], [0, 0, 0, expected[0], expected[0], *[expected[3]] * 3], atol=1e-6
    )
    equal = TreeRL(Config(form=form)).advantage([rt1(1.0, 1.0, 1.0, 1.0)])[0]
    assert equal.advantages is not None and not any(a.any() for a in equal.advantages)


def test_a_row_in_error_has_no_part() -> None:
    group = rt1(1.0, None, 0.0, 0.0)
    values = Tree.of(group).means(np.where(group.valid, group.scores, np.nan).astype(float))
    assert values[0] == pytest.approx(1 / 3) and on_nodes(group, values)[0] == 1.0
    (credited,) = TreeRL(Config()).advantage([group])
    assert credited.advantages is not None and not credited.advantages[2].any() and credited.advantages[0].any()
    # pA: V = 1 over the one leaf that counts, so (2/3 + 2/3) / sqrt(1)
    assert float(credited.advantages[0][3]) == pytest.approx(4 / 3, abs=1e-6)


def test_rows_once_and_as_edges() -> None:
    kinds: tuple[tuple[Rows, int], ...] = (("path", 4), ("path_dedup", 4), ("edge", 6))
    for rows, count in kinds:
        (credited,) = TreeRL(Config(rows=rows)).advantage([rt1()])
        every = collate([credited])
        assert len(every) == count == len(row_table([credited])[0])
        trained = sum(float(r.weight.sum()) for r in every)
        assert trained == (18 if rows == "path" else 14)  # 4 + 4 + 5 + 5, with 2 + 2 of them shared
        total = {
            int(tok): float(a) for r in every for tok, a, w in zip(r.tokens, r.advantages, r.weight, strict=True) if w
        }
        assert total[10] == pytest.approx(2**-1.5) and total[12] == 1.25 and total[16] == -0.75
    first = every[0]
    assert first.tokens.tolist() == [1, 2, 3, 10, 11] and first.weight.tolist() == [0, 0, 0, 1, 1]
    assert every[1].weight.tolist() == [0, 0, 0, 0, 0, 1, 1]
    (broken,) = TreeRL(Config(rows="path_dedup")).advantage([rt1(None, 1.0, 0.0, 0.0)])
    assert broken.trajectories[0].weight.sum() == 0 and broken.trajectories[2].weight.sum() == 5  # a living row owns
    cut = rt1(1.0, 1.0, 0.0, 0.0)
    masked = replace(cut.trajectories[0], weight=np.zeros_like(cut.trajectories[0].weight))  # `overlong: mask`
    cut = cut.with_(trajectories=(masked, *cut.trajectories[1:]))
    (kept,) = TreeRL(Config(rows="path_dedup")).advantage([cut])
    assert kept.trajectories[0].weight.sum() == 0 and kept.trajectories[2].weight.sum() == 5


def test_links_that_cannot_be() -> None:
    rows = rt1().trajectories
    with pytest.raises(ValueError, match="row 0 of draw 0 branches off row 1"):
        Tree.of(Group(TASK, 0, (replace(rows[0], parent=(1, 4)), rows[1]), prompt_len=3))
    inherited = Group(TASK, 0, (*rows[:3], leaf([10, 31], 1.0, (2, 4))), prompt_len=3)
    tree = Tree.of(inherited)  # row 3 leaves row 2 in what that has from row 0
    assert [tree.nodes[n].row for n in tree.paths[3]] == [0, 3] and len(tree.paths[0]) == 3
    beside = Tree.of(Group(TASK, 0, (*rows[:3], leaf([10, 11, 31], 1.0, (2, 5))), prompt_len=3))
    assert [beside.nodes[n].row for n in beside.paths[3]] == [0, 3]  # where row 2's own tokens begin: its sibling
    assert beside.means(np.array([1.0, 0, 0, 1]))[beside.paths[3][0]] == pytest.approx(2 / 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=12))
def test_the_ledger_never_exceeds_its_budget(budget: int, calls: list[tuple[int, int]]) -> None:
    ledger, open_calls = Ledger(budget), []
    for most, used in calls:
        if ledger.reserve(most):
            open_calls.append((most, min(most, used)))
        assert ledger.spent + ledger.reserved <= budget
        if len(open_calls) > 2:
            ledger.settle(*open_calls.pop(0))
    spent = ledger.spent + sum(used for _, used in open_calls)
    for call in open_calls:
        ledger.settle(*call)
    assert ledger.spent == spent <= budget and ledger.reserved == 0
    with pytest.raises(ValueError):
        ledger.settle(1, 1)


@dataclass
class Fake:
    """A sampler, a verifier and a run: responses are a pure function of seed and prompt."""

    seed: int = 5
    step: int = 0
    calls: list[list[Request]] = field(default_factory=list)
    broken: bool = False
    tasks: Sequence[Task] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def at(self, step: int) -> Fake:
        return replace(self, step=step)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if self.broken and self.calls:
            raise EngineError("the engine is gone")
        self.calls.append(list(requests))
        return [self._one(r) for r in requests]

    def _one(self, r: Request) -> Completion:
        rng = np.random.default_rng([r.sampling.seed or 0, len(r.tokens)])
        n = int(rng.integers(4, 25))
        m = min(n, r.sampling.max_tokens)
        logprobs = -rng.exponential(size=m).astype(np.float32)
        tokens = rng.integers(10, 99, m).astype(np.int32)
        return Completion(r.key, tokens, logprobs, np.full(m, self.step, np.int32), "length" if m < n else "stop")

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        right = [stable_seed(text) % 2 == 0 for text in responses]
        return [Verdict(float(r), r) for r in right]

    verify = score

    def encode(self, task: Task) -> np.ndarray:
        return PROMPT

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(map(str, tokens))


def sampled(method: Any, run: Any, *, group: int = 4, max_tokens: int = 16) -> Group:
    """One draw through a method's sampler."""
    return drawn(method.sampler(flat_groups(run, run, run, seed=run.seed)), run, group=group, max_tokens=max_tokens)


def drawn(sample: Any, run: Any, *, group: int = 4, max_tokens: int = 16) -> Group:
    """One draw through any sampler."""
    return asyncio.run(sample(Draw(TASK, 3, 0, group, Sampling(max_tokens=max_tokens), ctx=run)))


def same(a: Group, b: Group) -> bool:
    fields = ("tokens", "logprobs", "version", "weight", "temperature", "origin")
    return len(a) == len(b) and all(
        np.array_equal(getattr(x, f), getattr(y, f))
        for x, y in zip(a.trajectories, b.trajectories, strict=True)
        for f in fields
    )


def flat(group: int = 4) -> Group:
    run = Fake()
    return drawn(flat_groups(run, run, run, seed=5), run, group=group)


def check(group: Group, budget: int | None = None, *, max_tokens: int = 16) -> None:
    """What holds for every tree."""
    tree = Tree.of(group)
    for t, path in zip(group.trajectories, tree.paths, strict=True):
        assert t.verdict is not None and t.response_len <= max_tokens
        assert np.array_equal(t.weight, (t.origin != Origin.PROMPT).astype(np.float32))  # until there is credit
        for n in path:
            node = tree.nodes[n]
            for name in ("tokens", "logprobs", "version"):  # a shared prefix bit for bit
                assert np.array_equal(
                    getattr(t, name)[node.start : node.end],
                    getattr(group.trajectories[node.row], name)[node.start : node.end],
                    equal_nan=True,
                )
    decoded = sum(t.response_len for t in group.trajectories) - tokens_saved(group)
    counted = next(v for k, v in group.counts.items() if k.endswith("/decoded"))
    decoded -= sum(t.origin[t.parent[1]] == Origin.FORCED for t in group.trajectories if t.parent)
    assert decoded <= counted and (budget is None or counted <= budget)


@pytest.mark.parametrize(("n", "l", "t"), [(2, 1, 2), (1, 2, 1), (2, 2, 1)])
def test_treerl_grows_what_it_promises(n: int, l: int, t: int) -> None:  # noqa: E741
    run = Fake()
    group = sampled(TreeRL(Config(n=n, l=l, t=t)), run)
    check(group)
    assert len(group) == 4 * (1 + n * l * t) and len(run.calls) == 1 + l
    assert same(group.with_(trajectories=group.trajectories[:4]), flat())
    assert {r.home for call in run.calls for r in call} == {3}
    keys = [r.key for call in run.calls for r in call]
    assert len(set(keys)) == len(keys)
    assert same(group, sampled(TreeRL(Config(n=n, l=l, t=t)), Fake()))  # its seeds alone decide
    if l == 1:
        chain = group.trajectories[0]
        best = sorted(np.argsort(chain.logprobs[3:])[:n] + 3)
        assert sorted({b.parent[1] for b in group.trajectories if b.parent and b.parent[0] == 0}) == best


class Even(Fake):
    """Every response has 40 tokens."""

    def _one(self, r: Request) -> Completion:
        m = 40 - (len(r.tokens) - len(PROMPT))
        rng = np.random.default_rng([r.sampling.seed or 0, m])
        logprobs, tokens = -rng.exponential(size=m).astype(np.float32), rng.integers(10, 99, m).astype(np.int32)
        return Completion(r.key, tokens, logprobs, np.zeros(m, np.int32), "stop")


def test_the_papers_tree_decodes_18_chains_for_30_leaves() -> None:
    """6 + 24 halves, where places are spread evenly."""
    groups = [sampled(TreeRL(Config()), Even(seed=seed), group=6, max_tokens=64) for seed in range(20)]
    assert {len(g) for g in groups} == {30}
    said = TreeRL(Config()).observe(groups, {})
    assert said["decoded"] / (20 * 40) == pytest.approx(18, abs=1.5)
    assert said["saved_share"] == pytest.approx(0.4, abs=0.05)


def test_no_branch_after_the_answer() -> None:
    chain = flat().trajectories[0]
    marker = str(chain.tokens[5])
    group = sampled(TreeRL(Config(answer=rf"\b{marker}\b", t=1)), Fake())
    assert all(b.parent is None or b.parent[0] != 0 or b.parent[1] <= 5 for b in group.trajectories)


@pytest.mark.parametrize("method", [TreeRL(Config(n=0)), TreeRL(Config(l=0)), TreeRL(Config(t=0))])
def test_without_branches_it_is_plain_sampling(method: Any) -> None:
    group = sampled(method, Fake())
    assert same(group, flat()) and not group.counts
    assert method.advantage([group])[0] is group


def test_a_branching_that_fails_leaves_the_chains() -> None:
    method = TreeRL(Config())
    group = sampled(method, Fake(broken=True))
    assert same(group, flat()) and group.counts["treerl/failed"] == 1
    assert method.advantage([group])[0] is group
    assert method.observe([group], {})["failed"] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 300), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_the_budget_holds_and_shortage_is_counted(budget: int, n: int, l: int, t: int) -> None:  # noqa: E741
    group = sampled(TreeRL(Config(n=n, l=l, t=t, budget=budget)), Fake())
    check(group, budget)
    assert len(group) == 4 * (1 + n * l * t) or group.counts["treerl/refused"] > 0 or l > 1


def test_requests_of_one_home_go_to_one_replica() -> None:
    served: list[int] = []

    class Handle:
        def __init__(self, index: int) -> None:
            self.index = index

    pool = SamplerPool(Handle, replicas=3, start_limit=1, limit=5)

    async def sample(replica: Any, requests: Sequence[Request]) -> list[Completion]:
        served.append(replica.index)
        await asyncio.sleep(0)
        return []

    async def go() -> None:
        for replica in pool.replicas:
            replica.ready.set()
        pool._sample = sample  # type: ignore[method-assign]
        request = [Request("k", PROMPT, Sampling(), home=h) for h in range(3)]
        await asyncio.gather(*(pool.generate([r]) for r in request))
        await asyncio.gather(*(pool.generate([r]) for r in reversed(request)))
        pool.replicas[0].ready.clear()
        await pool.generate([request[0]])

    asyncio.run(go())
    assert served == [0, 1, 2, 2, 1, 0, 1]
