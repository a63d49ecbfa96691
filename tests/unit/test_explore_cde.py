"""CDE's perplexity bonus: the numbers of 2509.09675, its cap, its staircase, its size where all scores are equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.advantages.grpo import Grpo
from rlvr.explore.cde import CDE, perplexity_bonus, staircase
from rlvr.types import Group
from tests.unit.rows import make_group


@pytest.mark.parametrize(
    ("r", "b", "shaped"), [(1, 0.1, 1.1), (1, 0.5, 4 / 3), (-1, 0.1, -0.9), (-1, 0.5, -2 / 3), (0, 0.5, 0)]
)
def test_numbers_of_the_paper(r: float, b: float, shaped: float) -> None:
    got = r + perplexity_bonus(np.array([float(r)]), np.array([b]), w=1.0, kappa=3.0, alpha=1.0)[0]
    assert got == pytest.approx(shaped, abs=1e-9)


@given(st.floats(-1, 1), st.floats(0, 50), st.floats(0, 1), st.floats(1.01, 9))
def test_no_reward_changes_its_sign(r: float, b: float, w: float, kappa: float) -> None:
    bonus = perplexity_bonus(np.array([r]), np.array([b]), w=w, kappa=kappa, alpha=1.0)[0]
    assert 0 <= bonus <= abs(r) / kappa + 1e-12
    assert np.sign(r + bonus) == np.sign(r)


def surprised(scores: list[float], nll: list[float], errors: list[str | None] | None = None) -> Group:
    """A group whose trained tokens have these mean negative log-probs; garbage elsewhere."""
    group = make_group(0, scores=scores, errors=errors)
    rows = zip(group.trajectories, nll, strict=True)
    away = [replace(t, streams={"old_logp": np.where(t.weight != 0, -b, 77).astype(np.float32)}) for t, b in rows]
    return group.with_(trajectories=tuple(away), rewards=group.scores)


def test_scores_of_0_and_1_are_the_papers_rewards_halved() -> None:
    nll = [0.1, 0.5, 0.1, 0.5, 0.5]
    errors = [None] * 4 + ["timeout"]
    (plain,) = CDE(CDE.Config(signed=True)).reward([surprised([1, 1, -1, -1, 1], nll, errors)])
    (ours,) = CDE(CDE.Config()).reward([surprised([1, 1, 0, 0, 1], nll, errors)])
    assert plain.rewards is not None and ours.rewards is not None
    np.testing.assert_allclose(plain.rewards[:4], [1.1, 4 / 3, -0.9, -2 / 3], atol=1e-6)
    np.testing.assert_allclose(ours.rewards[:4], (plain.rewards[:4] + 1) / 2, atol=1e-6)
    assert np.isnan([plain.rewards[4], ours.rewards[4]]).all()
    said = CDE(CDE.Config()).observe([ours], {})
    assert (said["active"], said["capped"]) == (4, 2)


def test_in_a_group_of_equal_scores_it_stays_small() -> None:
    (shaped,) = CDE(CDE.Config(w=1e-3)).reward([surprised([0.0] * 4, [0.9, 0.1, 0.1, 0.1])])
    (credited,) = Grpo(Grpo.Config()).advantage([shaped])
    assert credited.advantages is not None
    largest = max(abs(float(a[-1])) for a in credited.advantages)
    assert 0 < largest < 1e-3 / 3


def test_the_staircase_ends_at_nothing_and_goes_on_after_a_stop() -> None:
    got = [staircase(k, start=1.0, steps=8, stairs=4) for k in (0, 1, 2, 4, 7, 8, 100)]
    assert got == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert staircase(10**6, start=0.5, steps=None, stairs=4) == 0.5
    method = CDE(CDE.Config(steps=4, stairs=2))
    group = surprised([1.0, 0.0], [0.1, 0.1])
    assert [method.observe([group], {})["w"] for _ in range(2)] == [1.0, 1.0]
    resumed = CDE(method.config)
    resumed.load_state_dict(method.state_dict())
    assert [resumed.observe([group], {})["w"] for _ in range(3)] == [0.5, 0.5, 0.0]
    assert resumed.reward([group])[0] is group
