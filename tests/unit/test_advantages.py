"""Advantage estimators against hand-worked numbers."""

from __future__ import annotations

import random
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.advantages.base import Estimator, spread
from rlvr.advantages.dr_grpo import DrGrpo
from rlvr.advantages.grpo import Grpo
from tests.unit.rows import make_group


def scalars(estimator: Estimator, rewards: list[float]) -> list[float]:
    """Advantages [G] of a group with these rewards; NaN is a row in error."""
    errors = ["timeout" if np.isnan(r) else None for r in rewards]
    group = make_group(0, scores=np.nan_to_num(rewards).tolist(), errors=errors)
    group = group.with_(rewards=np.array(rewards, dtype=np.float32))
    (credited,) = estimator.advantage([group])
    assert credited.advantages is not None
    assert all(a.dtype == np.float32 and (a[t.weight == 0] == 0).all() for a, t in rows(credited))
    assert all(len(set(a[t.weight != 0].tolist())) == 1 for a, t in rows(credited))
    return [float(a[-1]) for a in credited.advantages]


def rows(group: object) -> list:
    return list(zip(group.advantages, group.trajectories, strict=True))  # type: ignore[attr-defined]


def grpo(rewards: list[float], **options: object) -> list[float]:
    return scalars(Grpo(Grpo.Config(**options)), rewards)


def dr_grpo(rewards: list[float]) -> list[float]:
    return scalars(DrGrpo(DrGrpo.Config()), rewards)


def near(expected: list[float]) -> object:
    return pytest.approx(expected, abs=1e-6)


def test_grpo_and_dr_grpo_numbers() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert grpo(rewards) == near([1.499997, -0.499999, -0.499999, -0.499999])
    assert dr_grpo(rewards) == near([0.75, -0.25, -0.25, -0.25])
    assert grpo(rewards, std=False) == dr_grpo(rewards)


def test_rows_in_error_leave_the_baseline() -> None:
    assert dr_grpo([1.0, nan, 0.0]) == near([0.5, 0.0, -0.5])
    assert grpo([nan, 1.0, 0.0, 0.0, 0.0]) == near([0.0, 1.499997, -0.499999, -0.499999, -0.499999])


@pytest.mark.parametrize("rewards", [[0.7], [nan], [nan, 0.7, nan], [0.1] * 10, [1e30] * 3])
def test_groups_that_say_nothing_get_exact_zeros(rewards: list[float]) -> None:
    assert grpo(rewards) == dr_grpo(rewards) == [0.0] * len(rewards)


def test_shaping_alone_is_centred_but_not_divided() -> None:
    group = make_group(0, scores=[1.0] * 4).with_(rewards=np.array([1.001, 1, 1, 1], dtype=np.float32))
    (credited,) = Grpo(Grpo.Config()).advantage([group])
    assert [float(a[-1]) for a in credited.advantages or ()] == pytest.approx(
        [0.00075, -0.00025, -0.00025, -0.00025], abs=1e-6
    )


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, nan]), min_size=1, max_size=9), st.randoms())
def test_advantages_follow_their_rows_and_sum_to_zero(rewards: list[float], shuffler: random.Random) -> None:
    order = list(range(len(rewards)))
    shuffler.shuffle(order)
    plain = grpo(rewards)
    assert grpo([rewards[i] for i in order]) == near([plain[i] for i in order])
    assert sum(plain) == pytest.approx(0.0, abs=1e-5)


def test_rows_in_error_get_nothing_whatever_the_estimator_says() -> None:
    group = make_group(0, scores=[1.0, 0.0], errors=[None, "crash"])
    (first, second) = spread(group, np.array([2.0, 3.0])).advantages or ()
    assert first.tolist() == [0.0, 0.0, 2.0, 2.0, 2.0] and not second.any()
