"""Cosine length reward and HAPO against hand-worked numbers, and the rules of a shaped reward."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.explore.cosine_length import CosineLength, cosine
from rlvr.explore.hapo import HAPO, length_reward
from rlvr.types import Group
from tests.unit.test_explore_methods import group

ROWS = st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([0.0, 1.0, None])), min_size=1, max_size=8)


def of(lengths: list[int], scores: list[float | None], *, task: str = "t") -> Group:
    made = group(lengths, scores)
    return made.with_(task=replace(made.task, id=task))


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (0, 1, -1),
        (250, 0.9268, -0.9268),
        (500, 0.75, -0.75),
        (750, 0.5732, -0.5732),
        (1000, 0.5, -0.5),
        (2000, 0.5, -0.5),
    ],
)
def test_cosine_and_its_clamp(length: int, right: float, wrong: float) -> None:
    """Twice max_len earns what max_len does: unclamped it would wrap to (1, -1)."""
    got = [cosine(length, right=r, max_len=1000) for r in (True, False)]
    assert got == pytest.approx([right, wrong], abs=5e-5)


@pytest.mark.parametrize(
    ("length", "right", "wrong"),
    [
        (100, 0.9877, 0), (500, 0.7071, 0), (1000, 0, 0), (1300, -0.454, -0.454), (1500, -0.7, -0.7071),
        (2000, -0.7, -1), (5000, -0.7, -1),
    ],
)  # fmt: skip
def test_hapo_table(length: int, right: float, wrong: float) -> None:
    got = [length_reward(length, 1000, right=r) for r in (True, False)]
    assert got == pytest.approx([right, wrong], abs=5e-5)


def test_cosine_adds_to_what_is_there() -> None:
    method = CosineLength(CosineLength.Config(coef=0.5, max_len=1000))
    mixed = of([0, 1000, 500, 10], [1, 1, 0, None])
    [shaped] = method.reward([mixed.with_(rewards=np.array([2, 2, 0, nan], dtype=np.float32))])
    np.testing.assert_allclose(shaped.rewards, [2.5, 2.25, -0.375, nan], atol=1e-6)
    assert method.observe([mixed], {})["active"] == 3


def test_hapo_learns_after_the_step_and_keeps_it() -> None:
    method = HAPO(HAPO.Config())
    first = of([100, 80, 40], [1, 1, 0])
    assert method.reward([first])[0].rewards.tolist() == [1, 1, 0]  # nothing known yet
    assert method.observe([first], {}) == {"active": 0, "bonus_abs_mean": 0, "known": 1}
    second, other = of([40, 160, 400], [1, 0, 1]), of([40], [1], task="other")
    shaped, same = method.reward([second, other])  # h = 80
    np.testing.assert_allclose(shaped.rewards, [1 + np.cos(np.pi / 4), -1, 1 - 0.7], atol=1e-6)
    assert same.rewards.tolist() == [1]
    method.observe([second], {})
    resumed = HAPO(HAPO.Config())
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert resumed.state_dict() == method.state_dict() == {"solved": {"t": [4, 620, 40]}}
    assert resumed.reward([second])[0].rewards.tolist() == method.reward([second])[0].rewards.tolist()


def test_hapo_mean_and_initial() -> None:
    method = HAPO(HAPO.Config(history="mean", initial=10))
    assert method.reward([of([10, 5], [1, 1])])[0].rewards.tolist() == pytest.approx([1, 1.70711], abs=1e-5)
    method.observe([of([100, 300], [1, 1])], {})
    assert method.reward([of([200, 100], [1, 1])])[0].rewards.tolist() == pytest.approx([1, 1.70711], abs=1e-5)


@given(ROWS, st.permutations(range(8)))
def test_right_stays_above_wrong_whatever_the_lengths_and_the_order(rows: list, order: list[int]) -> None:
    g = of([r[0] for r in rows], [r[1] for r in rows])
    picked = [i for i in order if i < len(rows)]
    turned = g.with_(trajectories=tuple(g.trajectories[i] for i in picked))
    hapo = HAPO(HAPO.Config(w=1.0, initial=700))
    for method in (CosineLength(CosineLength.Config(coef=1.0)), hapo):
        [shaped], [also] = method.reward([g]), method.reward([turned])
        np.testing.assert_array_equal(also.rewards, shaped.rewards[picked])
        right, wrong = shaped.rewards[g.correct], shaped.rewards[g.valid & ~g.correct]
        assert not len(right) or not len(wrong) or right.min() > wrong.max()
        assert np.isnan(shaped.rewards[~g.valid]).all() and np.abs(np.nan_to_num(shaped.rewards - g.scores)).max() <= 1
    hapo.observe([g], {})
    before = hapo.state_dict()["solved"].get("t", [0, 0, np.inf])[2]
    hapo.observe([turned], {})
    assert hapo.state_dict()["solved"].get("t", [0, 0, np.inf])[2] == before  # `min` never grows
