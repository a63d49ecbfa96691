"""LATR: which places fork, which forks stay, and what a draw's rows are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rlvr.explore.latr import LATR, Config, edit_distance
from rlvr.types import Completion, Group, Origin, Request
from tests.unit.test_tree import PROMPT, Fake, check, flat, same, sampled


class Tied(Fake):
    """Greedy text is a function of the tokens before it; two tokens tie wherever their number is a multiple of 3."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done = await super().generate(requests)
        return [self._greedy(r) if r.sampling.top else c for r, c in zip(requests, done, strict=True)]

    def _greedy(self, r: Request) -> Completion:
        tokens = list(map(int, r.tokens))
        for _ in range(r.sampling.max_tokens):
            tokens.append(10 + (7 * sum(tokens) + len(tokens)) % 80)
        new = np.array(tokens[len(r.tokens) :], np.int32)
        ties = np.arange(len(r.tokens), len(tokens)) % 3 == 0
        logp = np.log(np.stack([np.where(ties, 0.45, 0.9), np.where(ties, 0.4, 0.05)], -1)).astype(np.float32)
        versions = np.zeros(len(new), np.int32)
        return Completion(r.key, new, logp[:, 0], versions, "length", (np.stack([new, new + 1], -1), logp))


def grown(**options: object) -> Group:
    return sampled(LATR(Config.model_validate({"steps": [2, 4], "reach": 12} | options)), Tied())


def test_edit_distance() -> None:
    a = np.arange(20)
    assert edit_distance(a, a) == 0 < 0.4 * 20  # identical windows: the fork goes
    assert edit_distance(a, np.where(a < 8, a + 50, a)) / 20 == 0.4  # 8 edits of 20: not below 0.4, it stays
    assert edit_distance(np.array([1, 2, 3]), np.array([2, 3, 4])) == 2


def test_forks_are_ties_that_differ() -> None:
    group = grown()
    check(group)
    assert len(group) == 4 and group.counts["latr/filled"] == 0 and group.counts["latr/forks"] == 3
    for t in group.trajectories:
        if t.parent is None:
            continue
        sibling, at = t.parent
        assert at % 3 == 0 and int(t.tokens[at]) == int(group.trajectories[sibling].tokens[at]) + 1  # rank 2
        assert t.origin[at] == Origin.FORCED and np.isnan(t.logprobs[at])
    root = group.trajectories[0]
    assert root.parent is None and not root.streams
    ends = root.tokens[root.origin == Origin.SAMPLED]
    assert len(ends) and np.isfinite(root.logprobs[root.origin == Origin.SAMPLED]).all()


def test_forks_like_their_parent_go() -> None:
    group = grown(tau_ed=1.01)  # no window is so different
    assert group.counts["latr/forks"] == 0 and group.counts["latr/filled"] == 3


def test_without_ties_one_greedy_row_and_plain_ones() -> None:
    group = grown(tau_abs=1.0)
    forced = [bool((t.origin == Origin.FORCED).any()) for t in group.trajectories]
    assert forced == [True, False, False, False] and len({t.text for t in group.trajectories}) == 4


def test_a_share_of_the_group() -> None:
    assert same(grown(eta={0: 0.0}), flat()) and same(grown(eta={5: 1.0}), flat())  # not yet
    half = grown(eta={0: 0.5})
    plain = flat()
    assert same(half.with_(trajectories=half.trajectories[:2]), plain.with_(trajectories=plain.trajectories[:2]))
    assert len(half) == 4 and half.counts["latr/forks"] == 1
    method = LATR(Config())
    assert method.advantage([half])[0] is half


@pytest.mark.parametrize("budget", [64, 70, 90, 200])
def test_the_budget_holds(budget: int) -> None:
    group = grown(budget=budget, eta={0: 0.5})
    assert group.counts["latr/decoded"] <= budget and len(group) >= 3


def test_forced_tokens_can_be_masked() -> None:
    group = grown(mask_forced=True)
    assert all(not t.weight[t.origin == Origin.FORCED].any() for t in group.trajectories)
    assert all((t.tokens[:3] == PROMPT).all() for t in group.trajectories)
